"""Give each gloo group of this process one worker thread, because two can damage the heap in torch 2.13.

Each worker writes the name of the collective that it has finished into one string of the group, without a lock
(`lastCompletedWorkName` in ProcessGroupGloo.cpp, runLoop). A name of more than 15 letters is on the heap, such as
ALLGATHER_COALESCED of DTensor and FSDP. Two workers that write at the same time free its memory twice.
"""

import functools
from datetime import timedelta
from typing import Any


@functools.cache
def use_one_gloo_worker() -> None:
    """Let the gloo groups that this process makes from now on have one worker each. Call it before the first group.

    A group's collectives then run one after the other, in the order in which they were started. That order is the same
    on all ranks. Without gloo in torch, nothing changes.
    """
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    if not dist.is_gloo_available():
        return
    group_type: Any = dist.ProcessGroupGloo
    by_torch = group_type.__init__

    def with_one_worker(self: Any, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        """torch's constructor. It chooses the network devices by GLOO_SOCKET_IFNAME; a group of one rank has them."""
        alone = group_type.__new__(group_type)
        by_torch(alone, HashStore(), 0, 1, timeout)
        options = group_type._Options()
        options._devices, options._timeout, options._threads = alone.options._devices, timeout, 1
        by_torch(self, store, rank, size, options)

    group_type.__init__ = with_one_worker

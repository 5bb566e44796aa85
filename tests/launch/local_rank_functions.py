"""Functions that tests/launch/processes/test_local_ranks.py runs on ranks."""

import ctypes
import faulthandler
import os
import resource
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

from gpt.errors import ConfigError
from parallel.errors import ForgedMessage


def meets(rank: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    store = dist.FileStore(str(Path(folder, "store")), 3)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=timedelta(hours=1))
    total = torch.ones(())
    dist.all_reduce(total)
    print(f"rank {rank} of a group of {int(total)}", flush=True)
    dist.destroy_process_group()


meets_again = meets


def killed_before_it_joins(rank: int, folder: str) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    meets(rank, folder)


def killed_with_its_peers_waiting(rank: int, folder: str) -> None:
    import torch.distributed as dist

    store = dist.FileStore(str(Path(folder, "store")), 3)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=timedelta(hours=1))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def raises(rank: int, folder: str) -> None:
    if rank == 2:
        raise ValueError("the fourth tensor is bad")
    time.sleep(3600)


def crashes(rank: int, folder: str) -> None:
    if rank == 1:
        _report_crashes()
        os.abort()
    time.sleep(3600)


def crashes_outside_python(rank: int, folder: str) -> None:
    """A thread of a library crashes, as one of gloo's may."""
    if rank == 1:
        _report_crashes()
        library = ctypes.CDLL(None)
        library.pthread_create(ctypes.byref(ctypes.c_ulong()), None, library.abort, None)
    time.sleep(3600)


def _report_crashes() -> None:
    """Let faulthandler write its report to the log; 30 idle threads make it longer than the part that is shown."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for _ in range(30):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


def mistaken(rank: int, folder: str) -> None:
    if rank == 1:
        raise ConfigError("data.seq_len = 0 must be at least 1")
    time.sleep(3600)


def forged(rank: int, folder: str) -> None:
    if rank == 1:
        raise ForgedMessage("a message from the network has no valid seal of this job")
    time.sleep(3600)

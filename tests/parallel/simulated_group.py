"""A process group of thousands of ranks in one process: this rank runs the real code, and its peers send the same.

Peers send what this rank sends, so the sizes of all messages are real. The tensors from rank 0's broadcasts and
scatters are recorded and replayed, so that the same code can afterwards run as another rank. The group counts the
bytes that this rank receives, and its collectives.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future


@dataclass
class Traffic:
    """What one rank received, and how many collectives it took part in."""

    bytes: int = 0
    collectives: int = 0


@dataclass
class Recording:
    """What rank 0 sent, in order: one tensor for all ranks, or one for the last rank."""

    sent: list[torch.Tensor] = field(default_factory=list)
    replayed: int = 0

    def next(self) -> torch.Tensor:
        self.replayed += 1
        return self.sent[self.replayed - 1]


class SimulatedGroup(dist.ProcessGroup):
    """Rank 0 or the last rank of `n_ranks`."""

    def __init__(self, rank: int, n_ranks: int, recording: Recording, traffic: Traffic) -> None:
        super().__init__(rank, n_ranks)
        self.n_ranks, self.leads, self.recording, self.traffic = n_ranks, rank == 0, recording, traffic

    def size(self) -> int:
        return self.n_ranks

    def getBackendName(self) -> str:
        return "simulated"

    def _count(self, size_bytes: int):
        self.traffic.bytes += size_bytes
        self.traffic.collectives += 1
        done: Future = Future()
        done.set_result(None)
        return _create_work_from_future(done)

    def allreduce(self, tensors, options=None):  # the maximum or minimum of equal values
        return self._count(2 * tensors[0].nbytes)

    def allreduce_coalesced(self, tensors, options=None):
        return self._count(2 * sum(tensor.nbytes for tensor in tensors))

    def barrier(self, options=None):
        return self._count(0)

    def broadcast(self, tensors, options=None):
        if self.leads:
            self.recording.sent.append(tensors[0].clone())
            return self._count(0)
        tensors[0].copy_(self.recording.next())
        return self._count(tensors[0].nbytes)

    def scatter(self, outputs, inputs, options=None):
        if self.leads:
            outputs[0].copy_(inputs[0][0])
            self.recording.sent.append(inputs[0][-1].clone())
            return self._count(0)
        outputs[0].copy_(self.recording.next())
        return self._count(outputs[0].nbytes)

    def gather(self, outputs, inputs, options=None):
        for received in outputs[0] if outputs else ():
            received.copy_(inputs[0])
        return self._count(self.n_ranks * inputs[0].nbytes if outputs else 0)

    def allgather(self, outputs, inputs, options=None):
        for received in outputs[0]:
            received.copy_(inputs[0])
        return self._count(self.n_ranks * inputs[0].nbytes)

    def all_gather_single(self, output, value, options=None):
        output.view(self.n_ranks, -1).copy_(value.reshape(1, -1))
        return self._count(output.nbytes)


@contextmanager
def simulated_group(rank: int, n_ranks: int, recording: Recording, traffic: Traffic) -> Iterator[None]:
    """Make this process a rank of the default process group, with simulated peers, while inside."""
    name = f"simulated{len(dist.Backend.backend_list)}"

    def create(store, rank, size, timeout):
        return SimulatedGroup(rank, size, recording, traffic)

    dist.Backend.register_backend(name, create, devices=["cpu"])
    dist.init_process_group(name, store=dist.HashStore(), rank=rank, world_size=n_ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def on_simulated_ranks(work: Callable[[], object], n_ranks: int) -> Traffic:
    """Run collective work as rank 0, then as the last rank; return what all ranks together receive and do."""
    recording, first, last = Recording(), Traffic(), Traffic()
    with simulated_group(0, n_ranks, recording, first):
        work()
    with simulated_group(n_ranks - 1, n_ranks, recording, last):
        work()
    assert recording.replayed == len(recording.sent), "the last rank did something else than rank 0"
    others = n_ranks - 1
    return Traffic(first.bytes + others * last.bytes, first.collectives + others * last.collectives)

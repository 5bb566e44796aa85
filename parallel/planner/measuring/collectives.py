"""Cases for the messages of training by size and number of ranks, on the process groups that training uses."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist

from parallel.axes.reduce_scatter import sum_chunks, sums_whole_tensors
from parallel.planner.machine.profile import CollectiveTime
from parallel.planner.measuring.rounds import TimedCase

BYTES = {"cpu": (2**10, 2**14, 2**18, 2**20, 2**22, 2**24), "cuda": (2**10, 2**16, 2**20, 2**24, 2**27, 2**30)}

REPEATED_BYTES, MAX_REPEATS = 2**20, 16  # small messages are repeated within a measurement, equally often on all ranks


def collective_cases(device: torch.device, ranks: int) -> Iterator[TimedCase]:
    """All-reduce, all-gather, reduce-scatter, and a message to a neighbour, in groups of `ranks` consecutive ranks.

    `ranks`: even. All groups work at once. Every rank of the default process group must time the cases.
    """
    group = _own_group(ranks)
    reduce_scatter: Callable[..., object] = dist.reduce_scatter_single
    if sums_whole_tensors(device.type):
        reduce_scatter = sum_chunks
    for nbytes in BYTES[device.type]:
        whole = torch.ones(nbytes // 4, device=device)
        part, sent = torch.ones(nbytes // 4 // ranks, device=device), torch.ones(nbytes // 4, device=device)
        gathered = torch.empty(part.numel() * ranks, device=device)
        runs: dict[str, Callable[[], object]] = {
            "all_reduce": partial(dist.all_reduce, whole, group=group),
            "all_gather": partial(dist.all_gather_single, gathered, part, group=group),
            "reduce_scatter": partial(reduce_scatter, part, gathered, group=group),
            "send": partial(_there_and_back, sent),
        }
        for kind, run in runs.items():
            row = partial(CollectiveTime, kind, ranks, nbytes)
            repeats = max(1, min(MAX_REPEATS, REPEATED_BYTES // nbytes))
            yield TimedCase((run,), partial(_halved, row) if kind == "send" else row, repeats)


def _own_group(ranks: int) -> dist.ProcessGroup | None:
    """This rank's group of consecutive ranks; None for all of them. Collective."""
    world = dist.get_world_size()
    if ranks == world:
        return None
    groups = [dist.new_group(list(range(first, first + ranks))) for first in range(0, world, ranks)]
    own = groups[dist.get_rank() // ranks]
    assert isinstance(own, dist.ProcessGroup)
    return own


def _there_and_back(tensor: torch.Tensor) -> None:
    """A message from each even rank to the next one, and back."""
    rank = dist.get_rank()
    for sender in (rank & ~1, rank | 1):
        if rank == sender:
            dist.send(tensor, rank ^ 1)
        else:
            dist.recv(tensor, rank ^ 1)


def _halved(row: Callable[[float], CollectiveTime], seconds: float) -> CollectiveTime:
    return row(seconds / 2)

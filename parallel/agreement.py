"""Let the ranks agree on the outcome of an action: all succeed, or all raise the same error.

Small Python objects travel pickled, as in torch.distributed's object collectives, between ranks of one run only. A rank
receives only its answer, for any number of ranks; only rank 0 receives messages from each rank.

A group of one rank sends nothing. The thread of gloo that handles a large message gets OpenMP threads of its own, and
with more threads than cores OpenMP's threads sleep after each kernel. A process of two threads trained at 0.82 times
the speed (docs/results/training/training_step.md).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.distributed_c10d import _object_to_tensor, _tensor_to_object

from gpt.errors import MACHINE_FAULTS, NO_ROOM, ConfigError
from parallel.errors import CheckpointError, CheckpointFault, ForgedMessage, NoRoomForCheckpoints

_T = TypeVar("_T")
_U = TypeVar("_U")


class Alone(Enum):
    """Use in place of a process group: this process alone, even if there are others."""

    ALONE = "alone"


ALONE = Alone.ALONE
Group = dist.ProcessGroup | Alone | None  # None: all ranks, or the only process


class PeerLost(RuntimeError):
    """Another rank died, or the process group failed, during a collective."""


def is_distributed() -> bool:
    """Return whether a process group exists. Without one, this is the only process."""
    return dist.is_available() and dist.is_initialized()


def rank_in(group: Group) -> int:
    """This process's rank in the group."""
    return dist.get_rank(group) if is_distributed() and group is not ALONE else 0


def world_size(group: Group) -> int:
    """Number of ranks in the group."""
    return dist.get_world_size(group) if is_distributed() and group is not ALONE else 1


def run_on_all_ranks(action: Callable[[], _T], group: Group, *, path: Path) -> _T:
    """Run `action` on every rank and return rank 0's result. If it fails on any rank, raise that error on all.

    Collective over `group`: one small reduction and one broadcast, whatever the number of ranks. The error is a
    ConfigError, of the lowest rank that failed; `path` is the checkpoint that it names. PeerLost: a
    rank cannot be reached. ForgedMessage: a value has no valid seal of this job.
    """
    outcome, cause = _attempt(action, path, rank_in(group))
    failed = _lowest_rank(outcome[1] is not None, group)
    result, failure = _broadcast(outcome, group, source=0 if failed is None else failed)
    if failure is not None:
        raise failure from cause
    return cast(_T, result)


def combine(value: _T, choose: Callable[[list[_T]], _U], group: Group) -> _U:
    """Return `choose(values of all ranks, by rank)`, which rank 0 computes, on every rank.

    `choose` must not fail. Collective over `group`; only rank 0 receives the values. PeerLost as above.
    """
    everyone = _gather(value, group)
    return cast(_U, _broadcast(choose(everyone) if everyone else None, group))


def broadcast_object(value: _T, group: Group) -> _T:
    """Rank 0's value. Collective over `group`; PeerLost as above."""
    return _broadcast(value, group)


def gather_scatter(gather: Callable[[], _T], split: Callable[[list[_T]], list[_U]], group: Group, *, path: Path) -> _U:
    """Run `gather` on every rank and `split` on rank 0 over all results; return this rank's part of what `split` gives.

    Only rank 0 holds the results of all ranks. Collective over `group`; errors as for `run_on_all_ranks`.
    """
    outcome, cause = _attempt(gather, path, rank_in(group))
    is_first, ranks = rank_in(group) == 0, world_size(group)
    parts: list[tuple[_U | None, ConfigError | None]] = []
    everyone = _gather(outcome, group)
    if is_first:
        failures = [failure for _, failure in everyone if failure is not None]
        if not failures:
            results = [cast(_T, result) for result, _ in everyone]
            (shared, failure), own_cause = _attempt(lambda: split(results), path, 0)
            cause = cause or own_cause
            parts = [(part, None) for part in shared] if shared is not None else []
            failures = [] if failure is None else [failure]
        parts = [(None, failures[0])] * ranks if failures else parts
    part, failure = _scatter(parts, group)
    if failure is not None:
        raise failure from cause
    return cast(_U, part)


def _attempt(action: Callable[[], _T], path: Path, rank: int) -> tuple[tuple[_T | None, ConfigError | None], Any]:
    """The result of an action, or its failure in a form that can be sent; and the original failure."""
    try:
        return (action(), None), None
    except (PeerLost, ForgedMessage):
        raise  # there is no other rank, or none to agree with
    except (Exception, CheckpointException) as error:
        mine = _as_config_error(error, path, rank)
        return (None, mine), None if error is mine else error


def _gather(value: _T, group: Group) -> list[_T]:
    """Every rank's value, by rank, on rank 0; an empty list on the others."""
    if not is_distributed() or group is ALONE or world_size(group) == 1:
        return [value]
    packed: tuple[torch.Tensor, torch.Tensor] = _object_to_tensor(value, _device(group), group)  # type: ignore[no-untyped-call]
    sent, length = packed
    # dist.gather_object would send the lengths of all objects to all ranks
    padded = torch.zeros(_reduced(len(sent), dist.ReduceOp.MAX, group), dtype=torch.uint8, device=sent.device)
    padded[: len(sent)] = sent
    lengths = _gather_tensors(length, group)
    unpack: Any = _tensor_to_object
    sizes = lengths.flatten().tolist()
    return [unpack(one, size, group) for one, size in zip(_gather_tensors(padded, group), sizes, strict=True)]


def _gather_tensors(mine: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Every rank's tensor, stacked by rank, in rank 0's host memory; no rows on the others. All have one shape."""
    n_rows = world_size(group) if rank_in(group) == 0 else 0
    received = torch.empty(n_rows, *mine.shape, dtype=mine.dtype, device=mine.device)
    with _peer_errors():
        dist.gather(mine, list(received) if n_rows else None, group=group, group_dst=0)
    return received.cpu()  # one copy: each waits for the device


def _broadcast(value: _T, group: Group, *, source: int = 0) -> _T:
    """The value of one rank, on every rank."""
    if not is_distributed() or group is ALONE or world_size(group) == 1:
        return value
    objects: list[Any] = [value if rank_in(group) == source else None]
    with _peer_errors():
        dist.broadcast_object_list(objects, group=group, group_src=source)
    return cast(_T, objects[0])


def _lowest_rank(here: bool, group: Group) -> int | None:
    """Return the lowest rank for which `here` is true, or None."""
    if not is_distributed() or group is ALONE or world_size(group) == 1:
        return 0 if here else None
    ranks = world_size(group)
    lowest = _reduced(rank_in(group) if here else ranks, dist.ReduceOp.MIN, group)
    return lowest if lowest < ranks else None


def _reduced(number: int, op: Any, group: dist.ProcessGroup | None) -> int:
    """Return the reduction of a number over all ranks."""
    tensor = torch.tensor(number, device=_device(group))
    with _peer_errors():
        dist.all_reduce(tensor, op=op, group=group)
    return int(tensor)


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """The device whose tensors the group sends."""
    return (
        torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")
    )


def wait_for_all() -> None:
    """Wait until every rank of the default process group has called this.

    It names this rank's GPU to NCCL: otherwise torch warns that it takes the current one.
    """
    device = _device(None)
    dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


def _scatter(values: list[_T], group: Group) -> _T:
    """This rank's value out of rank 0's `values`, one per rank."""
    if not is_distributed() or group is ALONE or world_size(group) == 1:
        return values[0]
    mine: list[Any] = [None]
    with _peer_errors():
        dist.scatter_object_list(mine, values if rank_in(group) == 0 else None, group=group, group_src=0)
    return cast(_T, mine[0])


@contextmanager
def _peer_errors() -> Iterator[None]:
    """Raise PeerLost when a collective fails. A ForgedMessage is no RuntimeError, and passes."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(f"another rank died or cannot be reached ({_one_line(error)})") from error


def _as_config_error(error: BaseException, path: Path, rank: int) -> ConfigError:
    """A failure in one line, as an object that can be pickled and sent to the other ranks."""
    if isinstance(error, CheckpointException):  # DCP's collection of failures; it knows this rank only
        return _as_config_error(next(iter(error.failures.values()))[0], path, rank)
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        kind = CheckpointFault if error.errno in MACHINE_FAULTS else CheckpointError
        kind = NoRoomForCheckpoints if error.errno in NO_ROOM else kind
        return kind(path, f"{error.strerror or error} on rank {rank}{where}")
    return CheckpointError(path, f"{type(error).__name__} on rank {rank}: {_one_line(error)}")


@contextmanager
def dcp_errors() -> Iterator[None]:
    """For DCP without communication: drop its warning about that, and raise an interrupt as an interrupt."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        try:
            yield
        except CheckpointException as error:
            for failure, _ in error.failures.values():
                if not isinstance(failure, Exception):
                    raise failure from None
            raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

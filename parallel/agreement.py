"""How the ranks agree on the outcome of a step: all succeed, or all raise the same error; never touches files.

What travels are small Python objects through torch.distributed's object collectives, between ranks of one run only.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from gpt.errors import NO_ROOM, ConfigError
from parallel.errors import CheckpointError, NoRoomForCheckpoints

_T = TypeVar("_T")
_U = TypeVar("_U")


class Alone(Enum):
    """In place of a process group: this process by itself, whatever others there are."""

    ALONE = "alone"


ALONE = Alone.ALONE
Group = dist.ProcessGroup | Alone | None  # None: all ranks, or the one process that there is


class PeerLost(RuntimeError):
    """Another rank died, or the process group failed, in the middle of a collective."""


def is_distributed() -> bool:
    """Whether a process group exists; without one, this process is all there is."""
    return dist.is_available() and dist.is_initialized()


def rank_in(group: Group) -> int:
    """This process's rank in the group."""
    return dist.get_rank(group) if is_distributed() and group is not ALONE else 0


def world_size(group: Group) -> int:
    """Number of ranks in the group."""
    return dist.get_world_size(group) if is_distributed() and group is not ALONE else 1


def exchange(value: _T, group: Group) -> list[_T]:
    """Every rank's value, by rank."""
    if not is_distributed() or group is ALONE:
        return [value]
    everyone: list[Any] = [None] * world_size(group)
    try:
        dist.all_gather_object(everyone, value, group=group)
    except RuntimeError as error:
        raise PeerLost(f"another rank died or cannot be reached ({_one_line(error)})") from error
    return everyone


def together(action: Callable[[], _T], group: Group, *, path: Path) -> list[_T]:
    """Run `action` on every rank and return all results; when it fails on any rank, raise that error on all."""
    outcome, cause = _attempt(action, path, rank_in(group))
    everyone = exchange(outcome, group)
    for _, failure in everyone:
        if failure is not None:
            raise failure from cause
    return [cast(_T, theirs) for theirs, _ in everyone]


def by_first(mine: Callable[[], _T], share_out: Callable[[list[_T]], list[_U]], group: Group, *, path: Path) -> _U:
    """Run `mine` on every rank and `share_out` of all results on rank 0; return this rank's part of what that gives.

    Only rank 0 ever holds what all ranks gave. When either fails on any rank, that error is raised on all.
    """
    outcome, cause = _attempt(mine, path, rank_in(group))
    is_first, ranks = rank_in(group) == 0, world_size(group)
    parts: list[tuple[_U | None, ConfigError | None]] = []
    everyone = _gather(outcome, group)
    if is_first:
        failures = [failure for _, failure in everyone if failure is not None]
        if not failures:
            results = [cast(_T, theirs) for theirs, _ in everyone]
            (shared, failure), own_cause = _attempt(lambda: share_out(results), path, 0)
            cause = cause or own_cause
            parts = [(part, None) for part in shared] if shared is not None else []
            failures = [] if failure is None else [failure]
        parts = [(None, failures[0])] * ranks if failures else parts
    part, failure = _scatter(parts, group)
    if failure is not None:
        raise failure from cause
    return cast(_U, part)


def _attempt(action: Callable[[], _T], path: Path, rank: int) -> tuple[tuple[_T | None, ConfigError | None], Any]:
    """What an action returned, or its failure in words for the others; and the failure itself."""
    try:
        return (action(), None), None
    except PeerLost:
        raise  # there is nobody to agree with
    except (Exception, CheckpointException) as error:
        mine = _as_config_error(error, path, rank)
        return (None, mine), None if error is mine else error


def _gather(value: _T, group: Group) -> list[_T]:
    """On rank 0 every rank's value, by rank; on the others nothing."""
    if not is_distributed() or group is ALONE:
        return [value]
    everyone: list[Any] | None = [None] * world_size(group) if rank_in(group) == 0 else None
    try:
        dist.gather_object(value, everyone, group=group, group_dst=0)
    except RuntimeError as error:
        raise PeerLost(f"another rank died or cannot be reached ({_one_line(error)})") from error
    return everyone or []


def _scatter(values: list[_T], group: Group) -> _T:
    """This rank's value of those that rank 0 has, one a rank."""
    if not is_distributed() or group is ALONE:
        return values[0]
    mine: list[Any] = [None]
    try:
        dist.scatter_object_list(mine, values if rank_in(group) == 0 else None, group=group, group_src=0)
    except RuntimeError as error:
        raise PeerLost(f"another rank died or cannot be reached ({_one_line(error)})") from error
    return cast(_T, mine[0])


def _as_config_error(error: BaseException, path: Path, rank: int) -> ConfigError:
    """What a rank tells the others of its failure: one line, in an object that survives the journey."""
    if isinstance(error, CheckpointException):  # DCP's collection of failures, the same on all ranks
        rank = min(error.failures)
        return _as_config_error(error.failures[rank][0], path, rank)
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        kind = NoRoomForCheckpoints if error.errno in NO_ROOM else CheckpointError
        return kind(path, f"{error.strerror or error} on rank {rank}{where}")
    return CheckpointError(path, f"{type(error).__name__} on rank {rank}: {_one_line(error)}")


@contextmanager
def dcp_errors() -> Iterator[None]:
    """Sort what comes out of DCP: it shares a rank's own failures as CheckpointException, and anything else is the
    process group's failure. An interrupt on one rank goes on as an interrupt on all.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        try:
            yield
        except CheckpointException as error:
            for failure, _ in error.failures.values():
                if not isinstance(failure, Exception):
                    raise failure from None
            raise
        except Exception as error:
            raise PeerLost(f"another rank died or cannot be reached ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

"""How the ranks agree on the outcome of a step: all succeed, or all raise the same error; never touches files.

What travels are small Python objects through torch.distributed's object collectives, between ranks of one run only.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from gpt.errors import ConfigError
from parallel.checkpoint_files import CheckpointError

_T = TypeVar("_T")


class PeerLost(RuntimeError):
    """Another rank died, or the process group failed, in the middle of a collective."""


def is_distributed() -> bool:
    """Whether a process group exists; without one, this process is all there is."""
    return dist.is_available() and dist.is_initialized()


def rank_in(group: dist.ProcessGroup | None) -> int:
    """This process's rank in the group."""
    return dist.get_rank(group) if is_distributed() else 0


def world_size(group: dist.ProcessGroup | None) -> int:
    """Number of ranks in the group."""
    return dist.get_world_size(group) if is_distributed() else 1


def exchange(value: _T, group: dist.ProcessGroup | None) -> list[_T]:
    """Every rank's value, by rank."""
    if not is_distributed():
        return [value]
    everyone: list[Any] = [None] * world_size(group)
    try:
        dist.all_gather_object(everyone, value, group=group)
    except RuntimeError as error:
        raise PeerLost(f"another rank died or cannot be reached ({_one_line(error)})") from error
    return everyone


def together(action: Callable[[], _T], group: dist.ProcessGroup | None, *, path: Path) -> list[_T]:
    """Run `action` on every rank and return all results; when it fails on any rank, raise that error on all."""
    result: _T | None = None
    mine: ConfigError | None = None
    cause: BaseException | None = None
    try:
        result = action()
    except PeerLost:
        raise  # there is nobody to agree with
    except (Exception, CheckpointException) as error:
        mine = _as_config_error(error, path, rank_in(group))
        cause = None if error is mine else error
    everyone = exchange((result, mine), group)
    for _, failure in everyone:
        if failure is not None:
            raise failure from cause
    return [cast(_T, theirs) for theirs, _ in everyone]


def _as_config_error(error: BaseException, path: Path, rank: int) -> ConfigError:
    """What a rank tells the others of its failure: one line, in an object that survives the journey."""
    if isinstance(error, CheckpointException):  # DCP's collection of failures, the same on all ranks
        rank = min(error.failures)
        return _as_config_error(error.failures[rank][0], path, rank)
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return CheckpointError(path, f"{error.strerror or error} on rank {rank}{where}")
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

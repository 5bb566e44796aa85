"""Checkpoints of named tensors: saved by all ranks, published whole or not at all; never knows what model they are of.

All ranks write into one hidden folder, fsync every file, write the manifest last and rename the folder. When any rank
fails, all give the save up together. Loading checks digests first and lets DCP re-shard to whatever layout asks.
One run writes to one directory at a time.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from gpt.errors import ConfigError
from parallel.agreement import Group, rank_in, together
from parallel.checkpoint.folders import delete_after, list_checkpoints, published_step
from parallel.checkpoint.load import load
from parallel.checkpoint.manifest import STATE, read_index, read_manifest, read_small
from parallel.checkpoint.save import save
from parallel.checkpoint.stream import assembled
from parallel.checkpoint.verify import check_against, verify
from parallel.errors import CheckpointError

__all__ = [
    "CheckpointError",
    "discard_after",
    "find_latest",
    "list_checkpoints",
    "load",
    "read_state",
    "read_tensors",
    "save",
    "tensor_metadata",
    "verify",
]


def find_latest(
    directory: Path, *, at_most: int | None = None, newer_than: int = -1, group: Group = None
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint that verifies, of a step up to `at_most` and above `newer_than`, and the newer ones that do
    not, each with the reason.

    Collective over `group`: each rank reads a share of every candidate's files, and all ranks get the same answer.
    """
    directory = Path(directory)
    skipped: list[tuple[Path, str]] = []
    found = together(lambda: list_checkpoints(directory, at_most=at_most), group, path=directory)[0]
    for path in [path for path in found if published_step(path) > newer_than]:
        reason = verify(path, group=group)
        if reason is None:
            return path, skipped
        skipped.append((path, reason))
    return None, skipped


def discard_after(directory: Path, *, step: int, group: Group = None) -> None:
    """Delete the checkpoints of later steps, for a run that goes on from `step`. Collective over `group`."""
    directory = Path(directory)
    together(lambda: delete_after(directory, step) if rank_in(group) == 0 else None, group, path=directory)


def read_state(path: Path) -> dict[str, Any]:
    """The state that was saved, after checking its digest. Any one rank may call this."""
    path = Path(path)
    return read_small(path, STATE, read_manifest(path))


def tensor_metadata(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name -> (global shape, dtype) of every tensor in a checkpoint. Any one rank may call this."""
    path = Path(path)
    index = read_index(path, read_manifest(path))
    return {name: (torch.Size(stored.shape), stored.dtype) for name, stored in index.items()}


def read_tensors(
    path: Path, names: Iterable[str] | None = None, *, verified: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Full tensors on the CPU, one at a time, assembled from their pieces without torch.distributed.

    `names`: which, in that order; default all, by name. `verified`: skip the check of digests. Raises
    CheckpointError when damaged, ConfigError when a name is not there, both before the first tensor.
    """
    path = Path(path)
    manifest = read_manifest(path)
    index = read_index(path, manifest)
    wanted = sorted(index) if names is None else list(names)
    for name in wanted:
        if name not in index:
            raise ConfigError(f"checkpoint {path} holds no tensor '{name}'")
    for file, record in manifest.files.items():
        if not verified:
            check_against(path, file, record)
    return assembled(path, manifest, [(name, index[name]) for name in wanted])

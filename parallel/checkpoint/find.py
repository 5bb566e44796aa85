"""Checkpoints of named tensors: saved by all ranks, published whole or not at all; never knows what model they are of.

All ranks write into one hidden folder, fsync every file, write the manifest last and rename the folder. When any rank
fails, all give the save up together. Loading checks digests first and lets DCP re-shard to whatever layout asks.
One run writes to one directory at a time.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from gpt.checkpoint_config import Retention
from gpt.errors import ConfigError
from parallel.agreement import ALONE, Group, PeerLost, dcp_errors, is_distributed, rank_in, together, world_size
from parallel.checkpoint.folders import delete_after, list_checkpoints, published_step
from parallel.checkpoint.load import SafetensorsReader, check_tensors
from parallel.checkpoint.manifest import (
    STATE,
    CheckpointError,
    FileRecord,
    check_file,
    read_index,
    read_manifest,
    read_small,
    step_name,
)
from parallel.checkpoint.plan import make_plan
from parallel.checkpoint.save import Save, check_save, given_up, local, tensor_bytes, write_checkpoint
from parallel.checkpoint.stream import assembled

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


def save(
    directory: Path,
    *,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: dict[str, object],
    keep: Retention,
    group: Group = None,
) -> Path:
    """Save tensors and state as `directory/step-000000123`, then delete older checkpoints that `keep` does not name.

    `tensors`: fully qualified name -> DTensor of any placement on any mesh, or plain tensor; a name that several ranks
    hold is written once, and names may differ by rank (pipeline stages). `state`: JSON object; rank 0's is written.
    A checkpoint of the same step is replaced; checkpoints of later steps are left alone. Room is needed for
    one checkpoint more than are kept.

    Collective over `group` (default: all ranks; one process needs no group): small objects are gathered, tensors are
    not sent. Blocks until the data are on disk. Raises ConfigError on all ranks for tensors or state that cannot be
    saved, CheckpointError when the disk or a rank fails: earlier checkpoints are then untouched.
    """
    final = Path(directory) / step_name(step)

    def check() -> bytes:
        encoded = check_save(step, state, keep)
        return encoded if rank_in(group) == 0 else b""  # every rank's is checked, rank 0's is kept

    encoded = together(check, group, path=final)[0]
    try:
        plan = make_plan(tensors, group, path=final)
    except PeerLost as error:
        raise given_up(final, error) from error
    read = functools.partial(_local_of, tensors)
    write_checkpoint(Save(final, plan, encoded, keep), lambda: tensor_bytes(plan.pieces, read), group)
    return final


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


def verify(path: Path, *, group: Group = None) -> str | None:
    """Check manifest, sizes and SHA-256 of all files: None when the checkpoint is whole, or what is wrong with it.

    Collective over `group`: each rank reads a share of the files, and all ranks get the same answer.
    """
    path = Path(path)

    def check_share() -> None:
        files = read_manifest(path).files
        by_size = sorted(files, key=lambda name: (-files[name].size_bytes, name))
        for name in by_size[rank_in(group) :: world_size(group)]:
            _check_file(path, name, files[name])

    try:
        together(check_share, group, path=path)
    except CheckpointError as error:
        return error.reason
    return None


def load(
    path: Path,
    *,
    tensors: Mapping[str, torch.Tensor],
    complete: bool = False,
    verified: bool = False,
    rounded: bool = False,
    group: Group = None,
) -> None:
    """Load a checkpoint in place into tensors of any layout and any number of ranks; each rank reads what it needs.

    `tensors` as for `save`. `complete`: also refuse a checkpoint with tensors that no rank asks for. `verified`: skip
    the check of digests, for a path that `find_latest` has just returned. `rounded`: floating-point numbers are rounded
    to the type of the tensors here, where that is another one.

    Collective over `group`. Raises CheckpointError when the checkpoint is damaged; ConfigError, before any tensor is
    changed, when a name is missing or a shape or dtype differs (a checkpoint from another model).
    """
    path = Path(path)
    reason = None if verified else verify(path, group=group)
    if reason is not None:
        raise CheckpointError(path, reason)
    prepared: list[SafetensorsReader] = []  # what stays on this rank: the index is large

    def prepare() -> list[str]:
        prepared.append(_prepare_load(path, tensors, rounded=rounded))
        return list(tensors) if complete else []

    names = together(prepare, group, path=path)
    reader = prepared[0]
    unused = set(reader.index).difference(*names) if complete else set()
    if unused:
        raise ConfigError(
            f"checkpoint {path} holds {len(unused)} tensors that nothing here asks for, '{min(unused)}' the first; "
            "it comes from another model or optimizer"
        )
    together(functools.partial(_read_tensors, reader, tensors, group), group, path=path)


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
            _check_file(path, file, record)
    return assembled(path, manifest, [(name, index[name]) for name in wanted])


def _check_file(path: Path, name: str, record: FileRecord) -> None:
    wrong = check_file(path, name, record)
    if wrong is not None:
        raise CheckpointError(path, wrong)


# Steps of a load


def _local_of(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return local(tensors[name])


def _prepare_load(path: Path, tensors: Mapping[str, torch.Tensor], *, rounded: bool) -> SafetensorsReader:
    """Read manifest and index, and compare them with the tensors to be filled."""
    check_tensors(tensors)
    manifest = read_manifest(path)
    index = read_index(path, manifest)
    for name, tensor in tensors.items():
        stored = index.get(name)
        if stored is None:
            raise ConfigError(f"checkpoint {path} holds no tensor '{name}': it comes from another model or optimizer")
        may_round = rounded and stored.dtype.is_floating_point and tensor.dtype.is_floating_point
        if stored.shape != tuple(tensor.shape) or not (stored.dtype == tensor.dtype or may_round):
            raise ConfigError(
                f"tensor '{name}' is {list(tensor.shape)} {tensor.dtype} here but {list(stored.shape)} {stored.dtype} "
                f"in checkpoint {path}: it comes from another model"
            )
    return SafetensorsReader(path, manifest, index)


def _read_tensors(reader: SafetensorsReader, tensors: Mapping[str, torch.Tensor], group: Group) -> None:
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with dcp_errors():
        dcp_load(
            dict(tensors),
            storage_reader=reader,
            planner=planner,
            process_group=None if group is ALONE else group,
            no_dist=not is_distributed() or group is ALONE,
        )

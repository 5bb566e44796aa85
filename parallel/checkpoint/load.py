"""Which tensors may be stored, and reading safetensors shards for torch.distributed.checkpoint; never unpickles.

DCP plans who reads which piece (re-sharding); the reader here moves the bytes. DCP asks for a subclass of its storage
interface, hence the inheritance.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from gpt.errors import ConfigError
from parallel.agreement import ALONE, Group, dcp_errors, is_distributed, together
from parallel.checkpoint.manifest import (
    Chunk,
    Manifest,
    StoredTensor,
    open_shard,
    read_index,
    read_manifest,
    stored_slice,
)
from parallel.checkpoint.plan import check_tensors
from parallel.checkpoint.verify import verify
from parallel.errors import CheckpointError


class SafetensorsReader(StorageReader):
    """Reads the pieces that DCP's load plan asks for out of the memory-mapped shards."""

    def __init__(self, path: Path, manifest: Manifest, index: dict[str, StoredTensor]) -> None:
        self.path = path
        self.manifest = manifest
        self.index = index
        self.chunks = {
            MetadataIndex(name, torch.Size(chunk.offsets)): chunk
            for name, stored in index.items()
            for chunk in stored.chunks
        }

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """DCP's view of the index."""
        tensors = {
            name: TensorStorageMetadata(
                properties=TensorProperties(dtype=stored.dtype),
                size=torch.Size(stored.shape),
                chunks=[ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.shape)) for c in stored.chunks],
            )
            for name, stored in self.index.items()
        }
        return Metadata(state_dict_metadata=dict(tensors))

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy every planned piece into its tensor, one shard after the other."""
        by_file: dict[str, list[tuple[ReadItem, Chunk]]] = {}
        for item in plan.items:
            chunk = self.chunks[item.storage_index]
            by_file.setdefault(chunk.file, []).append((item, chunk))
        for file, wanted in sorted(by_file.items()):
            shard = open_shard(self.path, file, self.manifest)
            for item, chunk in wanted:
                name = item.storage_index.fqn
                source = stored_slice(self.path, shard, name=name, stored=self.index[name], chunk=chunk)
                starts_lengths = zip(item.storage_offsets, item.lengths, strict=True)
                piece = source[tuple(slice(start, start + length) for start, length in starts_lengths)]
                target = planner.resolve_tensor(item).detach()
                target.copy_(piece)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """DCP's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """DCP's plans as they are."""
        return plans

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: one reader serves one load."""

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up: the index came with the constructor."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any path will do."""
        return True


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

"""Which tensors may be stored, and reading safetensors shards for torch.distributed.checkpoint; never unpickles.

DCP plans who reads which piece (re-sharding); the reader here moves the bytes. DCP asks for a subclass of its storage
interface, hence the inheritance.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard
from torch.futures import Future

from gpt.errors import ConfigError
from parallel.checkpoint.manifest import DTYPE_NAMES, Chunk, Manifest, StoredTensor, open_shard, stored_slice


def check_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse what would be saved or filled wrongly, before anything is touched."""
    for name, tensor in tensors.items():
        if not name or name == "__metadata__":
            raise ConfigError(f"{name!r} cannot be the name of a saved tensor")
        if tensor.dtype not in DTYPE_NAMES:
            raise ConfigError(f"tensor '{name}' is {tensor.dtype}; checkpoints hold {', '.join(DTYPE_NAMES.values())}")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise ConfigError(f"tensor '{name}' has no dense storage (device {tensor.device}, {tensor.layout})")
        if isinstance(tensor, DTensor):
            _check_placements(name, tensor)


def _check_placements(name: str, tensor: DTensor) -> None:
    """Refuse partial sums, and shards of which DTensor cannot tell the place: DCP would mix them up silently."""
    mesh, placements = tensor.device_mesh, tensor.placements
    if any(placement.is_partial() for placement in placements):
        raise ConfigError(f"tensor '{name}' is a partial sum ({placements}); redistribute it first")
    if mesh.get_coordinate() is None:
        return
    told_shape, _ = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    if tuple(told_shape) != tuple(tensor.to_local().shape):
        raise ConfigError(
            f"tensor '{name}' {list(tensor.shape)} is sharded {placements} on mesh {tuple(mesh.shape)}: this rank has "
            f"{list(tensor.to_local().shape)}, DTensor computes {list(told_shape)}; that dimension is sharded twice "
            "and not divisible by the tensor-parallel size: make it divisible"
        )
    for axis, placement in enumerate(placements):
        if isinstance(placement, _StridedShard):
            later = [mesh.size(i) for i in range(axis + 1, mesh.ndim) if placements[i].is_shard(placement.dim)]
            if placement.split_factor != math.prod(later):
                raise ConfigError(f"tensor '{name}' is sharded {placements}: its pieces are not contiguous")


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

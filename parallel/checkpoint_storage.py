"""Storage for torch.distributed.checkpoint: safetensors shards and a JSON index; never pickles, never publishes.

DCP plans who writes and who reads which piece (de-duplication, re-sharding); these classes move the bytes. DCP asks
for subclasses of its storage interfaces, hence the inheritance.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard
from torch.futures import Future

from gpt.errors import ConfigError
from parallel.checkpoint_files import (
    DTYPE_NAMES,
    INDEX,
    CheckpointError,
    Chunk,
    FileRecord,
    Manifest,
    StoredTensor,
    encode_index,
    open_shard,
    stored_slice,
    write_file,
)

_HEADER_BYTES_PER_PIECE = 512  # generous: one line in the shard's header and one in the index


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


class SavePlannerWithChecks(DefaultSavePlanner):
    """DCP's planner; the coordinator also compares the ranks' tensors and the free space before a byte is written."""

    def __init__(self, folder: Path) -> None:
        # Names are flat already; flattening would split them at dots of nested dictionaries only to join them again.
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.folder = folder
        self.tensor_bytes: int | None = None  # of all ranks together, known on rank 0 once planned

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Check, then let DCP de-duplicate and validate. Runs on rank 0; its exception reaches all ranks."""
        _check_same_everywhere(all_plans)
        plans, metadata = super().create_global_plan(all_plans)
        self.tensor_bytes = sum(_item_bytes(item) for plan in plans for item in plan.items)
        header_bytes = _HEADER_BYTES_PER_PIECE * sum(len(plan.items) for plan in plans)
        if self.tensor_bytes + header_bytes > shutil.disk_usage(self.folder).free:
            raise CheckpointError(self.folder, "there is not enough room")  # the caller adds the figures
        return plans, metadata


class SafetensorsWriter(StorageWriter):
    """Writes each rank's planned pieces to one safetensors file, a tensor at a time, and the index on rank 0.

    After the save, `written` holds the records of this rank's files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[str, FileRecord] = {}

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """DCP's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give each rank its file name."""
        return [dataclasses.replace(p, storage_data=f"shard-{rank:05d}.safetensors") for rank, p in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file, if it has anything to write."""
        # Widest elements first: every piece is then aligned to its element in the memory map that readers make.
        items = sorted(plan.items, key=lambda item: -_data(item).properties.dtype.itemsize)
        if items:
            self.written[plan.storage_data] = write_file(self.folder / plan.storage_data, _shard_pieces(items, planner))
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, _item_bytes(item), plan.storage_data) for item in items])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index (rank 0)."""
        files = {result.index: result.storage_data for rank_results in results for result in rank_results}
        index = {}
        for name, md in metadata.state_dict_metadata.items():
            assert isinstance(md, TensorStorageMetadata)
            chunks = tuple(
                Chunk(files[MetadataIndex(name, c.offsets)], tuple(c.offsets), tuple(c.sizes)) for c in md.chunks
            )
            index[name] = StoredTensor(tuple(md.size), md.properties.dtype, chunks)
        self.written[INDEX] = write_file(self.folder / INDEX, [encode_index(index)])

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: one writer serves one save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up: the folder exists."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any path will do."""
        return True


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


def _shard_pieces(items: list[WriteItem], planner: SavePlanner) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: header, then one tensor after the other, so that one at a time is in memory."""
    header: dict[str, Any] = {}
    offsets = {}
    end = 0
    for item in items:
        name, chunk = item.index.fqn, _data(item).chunk
        assert name not in header, f"two pieces of {name} on one rank"
        start, end = end, end + _item_bytes(item)
        header[name] = {
            "dtype": DTYPE_NAMES[_data(item).properties.dtype],
            "shape": list(chunk.sizes),
            "data_offsets": [start, end],
        }
        offsets[name] = {"saved_offsets": list(chunk.offsets)}
    # PyTorch's own HuggingFaceStorageReader finds the pieces' places here, so others can read our shards too.
    header["__metadata__"] = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for item in items:
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, torch.Tensor)
        yield _tensor_bytes(item, tensor)


def _tensor_bytes(item: WriteItem, tensor: torch.Tensor) -> memoryview:
    tensor = tensor.detach().cpu().contiguous()
    assert tensor.shape == _data(item).chunk.sizes, f"{item.index.fqn}: {tensor.shape}, planned {_data(item).chunk}"
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _check_same_everywhere(plans: list[SavePlan]) -> None:
    """A name that several ranks hold must mean one tensor: same global shape, dtype and kind (plain or sharded)."""
    seen: dict[str, tuple[Any, ...]] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            data = _data(item)
            what = (tuple(data.size), data.properties.dtype, item.type.name)
            first = seen.setdefault(item.index.fqn, (*what, rank))
            if first[:3] != what:
                raise ConfigError(
                    f"tensor '{item.index.fqn}' is {first[2]} {list(first[0])} {first[1]} on rank {first[3]} but "
                    f"{what[2]} {list(what[0])} {what[1]} on rank {rank}; one name must be one tensor"
                )


def _data(item: WriteItem) -> Any:
    assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
    return item.tensor_data


def _item_bytes(item: WriteItem) -> int:
    data = _data(item)
    return int(data.chunk.sizes.numel()) * int(data.properties.dtype.itemsize)

"""Plan a save: which rank writes which piece of which tensor, and the exact size of every file.

The planner of torch.distributed.checkpoint (DCP) derives the pieces from the tensors' layouts and assigns each to one
rank. A plan depends only on names, shapes, dtypes and layouts, so one plan serves every save of a run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from gpt.errors import ConfigError
from gpt.files.safetensors import DTYPE_NAMES, TensorSpec, encode_header
from parallel.agreement import ALONE, Group, gather_scatter, rank_in
from parallel.checkpoint.index import Chunk, StoredTensor, encode_index
from parallel.checkpoint.manifest import INDEX


@dataclass(frozen=True)
class ShardPiece:
    """A box of a tensor that one rank writes: `shape` elements starting at `offsets`."""

    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class WritePlan:
    """The pieces that this rank writes, and the sizes of all files."""

    file: str  # the shard's name
    pieces: tuple[ShardPiece, ...]  # in the order of the file; this rank writes no file if it has none
    index: bytes | None  # tensors.json on rank 0, which writes it; None on the others
    writers: range  # the ranks that write into one checkpoint folder with this one; the first of them leads
    tensor_bytes: int  # of all ranks
    file_bytes: dict[str, int]  # on rank 0: the size of every shard and of the index; empty on the others


def make_plan(tensors: Mapping[str, torch.Tensor], group: Group, *, path: Path) -> WritePlan:
    """This rank's part of saving `tensors`, which are as for `save_checkpoint`. No element is read.

    Collective over `group`. ConfigError on all ranks for tensors that cannot be saved correctly. `path` is for errors.
    """

    def pieces_here() -> SavePlan:
        check_tensors(tensors)
        return _local_plan(tensors)

    return gather_scatter(pieces_here, _assign, group, path=path)


def make_rank_plan(tensors: Mapping[str, torch.Tensor], group: Group, *, path: Path) -> WritePlan:
    """The plan of a rank that saves its own shards of `tensors` as a separate checkpoint. No communication.

    `group`: the ranks that save at the same time, each into its own folder.
    """
    rank = rank_in(group)
    plan = make_plan({name: local(tensor) for name, tensor in tensors.items()}, ALONE, path=path)
    return replace(plan, writers=range(rank, rank + 1))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's elements of a tensor, without its gradient."""
    with torch.no_grad():  # then to_local() returns the stored tensor itself, not a view
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def shard_header(pieces: tuple[ShardPiece, ...]) -> bytes:
    """The first bytes of a shard: a safetensors header with the position of each piece."""
    specs = {piece.name: TensorSpec(piece.shape, piece.dtype) for piece in pieces}
    assert len(specs) == len(pieces), "two pieces of one tensor on one rank"
    return encode_header(specs, offsets={piece.name: piece.offsets for piece in pieces})


def _planner() -> DefaultSavePlanner:
    # The dictionary of tensors is flat already.
    return DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


def _local_plan(tensors: Mapping[str, torch.Tensor]) -> SavePlan:
    planner = _planner()
    planner.set_up_planner(dict(tensors), is_coordinator=False)
    return planner.create_local_plan()


def _assign(plans: list[SavePlan]) -> list[WritePlan]:
    """Every rank's plan. DCP assigns a replicated piece to the rank with the fewest bytes, and checks coverage."""
    _check_same_everywhere(plans)
    global_plans, metadata = _planner().create_global_plan(plans)
    files = [f"shard-{rank:05d}.safetensors" for rank in range(len(plans))]
    # Widest elements first: each piece is then aligned to its element size when a reader maps the file.
    shares = [tuple(sorted(map(_piece, plan.items), key=lambda piece: -piece.dtype.itemsize)) for plan in global_plans]
    index = encode_index(_index(global_plans, files, metadata))
    data_bytes = [sum(piece.size_bytes for piece in pieces) for pieces in shares]
    file_bytes = {
        file: len(shard_header(pieces)) + size
        for file, pieces, size in zip(files, shares, data_bytes, strict=True)
        if pieces
    }
    file_bytes[INDEX] = len(index)
    first, *others = (
        WritePlan(file, pieces, None, range(len(plans)), sum(data_bytes), {})
        for file, pieces in zip(files, shares, strict=True)
    )
    return [replace(first, index=index, file_bytes=file_bytes), *others]


def _index(plans: list[SavePlan], files: list[str], metadata: Metadata) -> dict[str, StoredTensor]:
    """The index: for each tensor, the file of each of its pieces."""
    file_of = {item.index: file for file, plan in zip(files, plans, strict=True) for item in plan.items}
    index = {}
    for name, md in metadata.state_dict_metadata.items():
        assert isinstance(md, TensorStorageMetadata)
        chunks = tuple(
            Chunk(file_of[MetadataIndex(name, c.offsets)], tuple(c.offsets), tuple(c.sizes)) for c in md.chunks
        )
        index[name] = StoredTensor(tuple(md.size), md.properties.dtype, chunks)
    return index


def _check_same_everywhere(plans: list[SavePlan]) -> None:
    """A name on several ranks must mean one tensor: the same global shape, dtype and kind (plain or sharded)."""
    seen: dict[str, tuple[Any, ...]] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            data = _data(item)
            what = (tuple(data.size), data.properties.dtype, item.type.name)
            first = seen.setdefault(item.index.fqn, (*what, rank))
            if first[:3] != what:
                raise ConfigError(
                    f"tensor '{item.index.fqn}' is {first[2]} {list(first[0])} {first[1]} on rank {first[3]} but "
                    f"{what[2]} {list(what[0])} {what[1]} on rank {rank}; one name must mean one tensor"
                )


def _piece(item: WriteItem) -> ShardPiece:
    data = _data(item)
    return ShardPiece(item.index.fqn, tuple(data.chunk.offsets), tuple(data.chunk.sizes), data.properties.dtype)


def _data(item: WriteItem) -> Any:
    assert item.tensor_data is not None, f"{item.index.fqn} is not a tensor"
    return item.tensor_data


def check_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """ConfigError for tensors that cannot be saved or filled correctly."""
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
    """ConfigError for partial sums, and for shards whose position DTensor computes wrongly: DCP would mix them up."""
    mesh, placements = tensor.device_mesh, tensor.placements
    if any(placement.is_partial() for placement in placements):
        raise ConfigError(f"tensor '{name}' is a partial sum ({placements}); redistribute it first")
    if mesh.get_coordinate() is None:
        return
    expected_shape, _ = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    if tuple(expected_shape) != tuple(tensor.to_local().shape):
        raise ConfigError(
            f"tensor '{name}' {list(tensor.shape)} is sharded {placements} on mesh {tuple(mesh.shape)}: this rank has "
            f"{list(tensor.to_local().shape)}, DTensor computes {list(expected_shape)}; that dimension is sharded "
            "twice and not divisible by the tensor-parallel size: make it divisible"
        )
    for axis, placement in enumerate(placements):
        if isinstance(placement, _StridedShard):
            later = [mesh.size(i) for i in range(axis + 1, mesh.ndim) if placements[i].is_shard(placement.dim)]
            if placement.split_factor != math.prod(later):
                raise ConfigError(f"tensor '{name}' is sharded {placements}: its pieces are not contiguous")

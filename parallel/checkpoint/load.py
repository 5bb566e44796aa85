"""Load tensors from a checkpoint: in place over all ranks, or whole ones in a single process. Nothing is unpickled.

torch.distributed.checkpoint (DCP) plans which rank reads which piece, which is how a load re-shards. The reader here
moves the bytes; DCP asks for a subclass of its storage interface, hence the inheritance.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
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
from gpt.files.safetensors import TensorLocation, read_header, read_into
from parallel.agreement import Group, dcp_errors, gather_scatter, run_on_all_ranks
from parallel.checkpoint.handle import Checkpoint
from parallel.checkpoint.index import Chunk, open_shard, stored_slice
from parallel.checkpoint.plan import check_tensors

_OPEN_SHARDS = 128  # whose headers are kept


class SafetensorsReader(StorageReader):
    """Reads the pieces of DCP's load plan from the memory-mapped shards."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.chunks = {
            MetadataIndex(name, torch.Size(chunk.offsets)): chunk
            for name, stored in checkpoint.index.items()
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
            for name, stored in self.checkpoint.index.items()
        }
        return Metadata(state_dict_metadata=dict(tensors))

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy every planned piece into its tensor, one shard after the other."""
        by_file: dict[str, list[tuple[ReadItem, Chunk]]] = {}
        for item in plan.items:
            chunk = self.chunks[item.storage_index]
            by_file.setdefault(chunk.file, []).append((item, chunk))
        for file, wanted in sorted(by_file.items()):
            shard = open_shard(self.checkpoint.path, file, self.checkpoint.manifest)
            for item, chunk in wanted:
                name = item.storage_index.fqn
                stored = self.checkpoint.index[name]
                source = stored_slice(self.checkpoint.path, shard, name=name, stored=stored, chunk=chunk)
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


def load_checkpoint(
    checkpoint: Checkpoint,
    *,
    tensors: Mapping[str, torch.Tensor],
    complete: bool = False,
    rounded: bool = False,
    group: Group = None,
) -> None:
    """Load a checkpoint in place into tensors of any layout and any number of ranks; each rank reads what it needs.

    `tensors` as for `save_checkpoint`. `complete`: also refuse a checkpoint with tensors that no rank loads.
    `rounded`: round floating-point numbers to the dtype of the tensors here, if that is another one.

    Collective over `group`. Raises CheckpointError if a file has been changed since it was verified; ConfigError,
    before any tensor is changed, if a name is missing or a shape or dtype differs (a checkpoint of another model).
    """
    path = checkpoint.path
    prepared: list[SafetensorsReader] = []  # stays on this rank: the index is large

    def prepare() -> list[str]:
        _check_fits(checkpoint, tensors, rounded=rounded)
        prepared.append(SafetensorsReader(checkpoint))
        return list(tensors) if complete else []

    def check_complete(names: list[list[str]]) -> list[None]:
        unused = set(checkpoint.index).difference(*names) if complete else set()
        if unused:
            raise ConfigError(
                f"checkpoint {path} holds {len(unused)} tensors that are not requested here, such as '{min(unused)}'; "
                "it comes from another model or optimizer"
            )
        return [None] * len(names)

    gather_scatter(prepare, check_complete, group, path=path)
    run_on_all_ranks(functools.partial(_read_planned, prepared[0], tensors), group, path=path)


def read_tensors(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Full tensors on the CPU, one at a time, assembled from their chunks without torch.distributed.

    `names`: the tensors to read, in that order; default all, by name. ConfigError, before the first tensor, if a name
    is missing.
    """
    index = checkpoint.index
    wanted = sorted(index) if names is None else list(names)
    for name in wanted:
        if name not in index:
            raise ConfigError(f"checkpoint {checkpoint.path} holds no tensor '{name}'")
    return _assembled(checkpoint, wanted)


def has_shape(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> bool:
    """Return whether the checkpoint holds a tensor of this name and shape."""
    stored = checkpoint.index.get(name)
    return stored is not None and stored.shape == shape


def _check_fits(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], *, rounded: bool) -> None:
    """Compare the index with the tensors to be filled."""
    check_tensors(tensors)
    path = checkpoint.path
    for name, tensor in tensors.items():
        stored = checkpoint.index.get(name)
        if stored is None:
            raise ConfigError(f"checkpoint {path} holds no tensor '{name}': it comes from another model or optimizer")
        may_round = rounded and stored.dtype.is_floating_point and tensor.dtype.is_floating_point
        if stored.shape != tuple(tensor.shape) or not (stored.dtype == tensor.dtype or may_round):
            raise ConfigError(
                f"tensor '{name}' is {list(tensor.shape)} {tensor.dtype} here but {list(stored.shape)} {stored.dtype} "
                f"in checkpoint {path}: it comes from another model"
            )


def _read_planned(reader: SafetensorsReader, tensors: Mapping[str, torch.Tensor]) -> None:
    """Each rank plans for itself: DCP would send the plans and all names to all ranks, and use neither."""
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with dcp_errors():
        dcp_load(dict(tensors), storage_reader=reader, planner=planner, no_dist=True)


def _assembled(checkpoint: Checkpoint, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """By plain reads: pages of a mapped file would count as memory of this process."""
    path = checkpoint.path

    @functools.lru_cache(_OPEN_SHARDS)
    def opened(file: str) -> tuple[Any, dict[str, TensorLocation]]:
        return open_shard(path, file, checkpoint.manifest), read_header(path / file)

    for name in names:
        stored = checkpoint.index[name]
        full = torch.empty(stored.shape, dtype=stored.dtype)
        for chunk in stored.chunks:
            shard, header = opened(chunk.file)
            stored_slice(path, shard, name=name, stored=stored, chunk=chunk)  # compares header and index
            box = full[
                tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.shape, strict=True))
            ]
            if box.is_contiguous():
                read_into(header[name], box)
            else:
                piece = torch.empty(chunk.shape, dtype=stored.dtype)
                read_into(header[name], piece)
                box.copy_(piece)
        yield name, full
        del full

"""Read and write tensors.json, which maps each tensor to its chunks in the shards, and open shards."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gpt.files.boxes import untiled
from gpt.files.safetensors import DTYPE_NAMES, DTYPES
from parallel.checkpoint.files import open_own, read_json
from parallel.checkpoint.manifest import INDEX, CheckpointManifest, is_count
from parallel.errors import CheckpointError

MAX_NAME_LENGTH = 1000
MAX_TENSOR_BYTES = 2**62  # torch counts bytes in 64 bits


@dataclass(frozen=True)
class Chunk:
    """A saved box of a tensor: `shape` elements starting at `offsets`, stored in `file` under the tensor's name."""

    file: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as saved: its global shape, and the chunks that tile it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


def encode_index(index: dict[str, StoredTensor]) -> bytes:
    """The index as JSON, one line per tensor."""
    lines = [
        f"{json.dumps(name)}: {json.dumps({**asdict(stored), 'dtype': DTYPE_NAMES[stored.dtype]})}"
        for name, stored in sorted(index.items())
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_index(path: Path, manifest: CheckpointManifest) -> dict[str, StoredTensor]:
    """Read tensors.json. CheckpointError unless its chunks tile every tensor and fit into their files."""
    index = {}
    used_bytes = dict.fromkeys(manifest.files, 0)
    for name, entry in read_json(path, INDEX, manifest.files[INDEX]).items():
        if len(name) > MAX_NAME_LENGTH or not name.isprintable():
            raise CheckpointError(path, f"{INDEX}: {name[:100]!r} of {len(name)} characters is no name of a tensor")
        try:
            chunks = tuple(Chunk(c["file"], tuple(c["offsets"]), tuple(c["shape"])) for c in entry["chunks"])
            stored = StoredTensor(tuple(entry["shape"]), DTYPES[entry["dtype"]], chunks)
            _check_sizes(path, name, stored)
            for chunk in chunks:
                used_bytes[chunk.file] += math.prod(chunk.shape) * stored.dtype.itemsize
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(path, f"{INDEX}: the entry of '{name}' is not as Triaxial writes it") from error
        index[name] = stored
    for file, used in used_bytes.items():
        if used > manifest.files[file].size_bytes:
            raise CheckpointError(path, f"{INDEX} wants {used} bytes of {file}, which has fewer")
    return index


def open_shard(path: Path, name: str, manifest: CheckpointManifest) -> Any:
    """Map one shard with the safetensors library, which checks its header. No link is followed; the size must match."""
    with open_own(path, name) as file:
        if os.fstat(file.fileno()).st_size != manifest.files[name].size_bytes:
            raise CheckpointError(path, f"{name} does not have the size the manifest says")
    try:
        return safe_open(path / name, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(path, f"{name} is no valid safetensors file: {error}") from error


def stored_slice(path: Path, shard: Any, *, name: str, stored: StoredTensor, chunk: Chunk) -> Any:
    """A lazy slice of a chunk in an open shard, after comparing the shard's header with the index."""
    try:
        found = shard.get_slice(name)
    except SafetensorError as error:
        raise CheckpointError(path, f"{chunk.file} does not hold '{name}': {error}") from error
    if tuple(found.get_shape()) != chunk.shape or found.get_dtype() != DTYPE_NAMES[stored.dtype]:
        raise CheckpointError(path, f"{chunk.file} holds '{name}' in another shape or dtype than {INDEX} says")
    return found


def _check_sizes(path: Path, name: str, stored: StoredTensor) -> None:
    """Check the sizes of a tensor and its chunks. ValueError: one is not a count, so Triaxial did not write it."""
    sizes = (*stored.shape, *(n for chunk in stored.chunks for n in (*chunk.offsets, *chunk.shape)))
    if not all(map(is_count, sizes)):
        raise ValueError("a size that is no count")
    if math.prod(max(n, 1) for n in stored.shape) * stored.dtype.itemsize > MAX_TENSOR_BYTES:
        raise CheckpointError(path, f"{INDEX}: the shape of '{name}' is too large for any memory")
    if len({chunk.file for chunk in stored.chunks}) < len(stored.chunks):
        raise CheckpointError(path, f"{INDEX}: two pieces of '{name}' are in one file, which holds one of each tensor")
    fault = untiled(stored.shape, [(chunk.offsets, chunk.shape) for chunk in stored.chunks])
    if fault is not None:
        raise CheckpointError(path, f"{INDEX}: the pieces of '{name}' do not tile it: {fault}")

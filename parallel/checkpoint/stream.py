"""A checkpoint that one process writes from a stream of tensors, or reads as one; memory stays near one tensor.

Saves of a training run go through parallel/checkpoint/save.py; this is for what was made elsewhere. Never talks to
other ranks.
"""

import functools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.files.safetensors import (
    MAX_FILE_BYTES,
    TensorLocation,
    TensorSpec,
    encode_file,
    group_into_files,
    read_header,
    read_into,
)
from parallel.checkpoint.folders import make_hidden, publish
from parallel.checkpoint.manifest import (
    INDEX,
    MANIFEST,
    STATE,
    Chunk,
    Manifest,
    StoredTensor,
    encode_index,
    encode_manifest,
    encode_state,
    open_shard,
    step_of,
    stored_slice,
    write_file,
)
from parallel.errors import CheckpointError

_OPEN_SHARDS = 128  # whose headers are kept


def write_stream(
    final: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    expected: Mapping[str, TensorSpec],
    state: dict[str, object],
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Publish a checkpoint of exactly the tensors in `expected`, which the stream gives in that order.

    Each is written as its expected dtype; one with fewer rows than expected is filled up with zeros. `final`:
    directory/step-000000123. CheckpointError: the disk refuses or has no room. Whatever goes wrong, nothing is there.
    """
    hidden = make_hidden(final)
    try:
        needed, free = sum(entry.size_bytes for entry in expected.values()), shutil.disk_usage(hidden).free
        if needed > free:
            raise CheckpointError(final, f"not saved: it needs {needed} bytes and {free} bytes are free there")
        _write_files(hidden, final, iter(tensors), expected, state, max_file_bytes)
        publish(hidden, final)
    except OSError as error:
        raise CheckpointError(final, f"not saved: {error.strerror or error}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)  # gone already where all went well


def _write_files(
    hidden: Path,
    final: Path,
    stream: Iterator[tuple[str, Tensor]],
    expected: Mapping[str, TensorSpec],
    state: dict[str, object],
    max_file_bytes: int,
) -> None:
    files, index = {}, {}
    groups = group_into_files(expected, max_file_bytes)
    for number, names in enumerate(groups):
        file = f"shard-{number:05d}.safetensors"
        specs = {name: expected[name] for name in names}
        files[file] = write_file(hidden / file, encode_file(specs, stream))
        for name, spec in specs.items():
            index[name] = StoredTensor(spec.shape, spec.dtype, (Chunk(file, (0,) * len(spec.shape), spec.shape),))
    assert next(stream, None) is None, "more tensors than expected"
    files[INDEX] = write_file(hidden / INDEX, [encode_index(index)])
    files[STATE] = write_file(hidden / STATE, [encode_state(state)])
    step = step_of(final.name)
    assert step is not None
    total = sum(entry.size_bytes for entry in expected.values())
    write_file(hidden / MANIFEST, [encode_manifest(Manifest(step, len(groups), torch.__version__, total, files))])


def assembled(path: Path, manifest: Manifest, wanted: list[tuple[str, StoredTensor]]) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors out of their pieces, one at a time, by plain reads: a map of a file would count as memory."""

    @functools.lru_cache(_OPEN_SHARDS)
    def places(file: str) -> tuple[Any, dict[str, TensorLocation]]:
        return open_shard(path, file, manifest), read_header(path / file)

    for name, stored in wanted:
        full = torch.empty(stored.shape, dtype=stored.dtype)
        for chunk in stored.chunks:
            shard, header = places(chunk.file)
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

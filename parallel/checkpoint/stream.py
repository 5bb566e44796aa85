"""Write a checkpoint in one process from a stream of tensors, such as an imported model. Memory stays near one tensor.

A training run saves by save.py and background.py.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gpt.files.safetensors import (
    MAX_FILE_BYTES,
    TensorSpec,
    encode_file,
    group_into_files,
)
from parallel.checkpoint.files import write_file
from parallel.checkpoint.folders import make_hidden, publish, published_step
from parallel.checkpoint.index import Chunk, StoredTensor, encode_index
from parallel.checkpoint.manifest import (
    INDEX,
    MANIFEST,
    STATE,
    CheckpointManifest,
    encode_manifest,
    encode_state,
)
from parallel.errors import CheckpointError


def write_stream(
    final: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    expected: Mapping[str, TensorSpec],
    state: dict[str, object],
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Publish a checkpoint of exactly the tensors in `expected`, which the stream yields in that order.

    Each is written in its expected dtype; one with fewer rows than expected is padded with zeros. `final`:
    directory/step-000000123. CheckpointError: the disk refuses or is full. After any error nothing is at `final`.
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
        shutil.rmtree(hidden, ignore_errors=True)  # already renamed after success


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
    total_bytes = sum(entry.size_bytes for entry in expected.values())
    manifest = CheckpointManifest(published_step(final), len(groups), torch.__version__, total_bytes, files)
    write_file(hidden / MANIFEST, [encode_manifest(manifest)])

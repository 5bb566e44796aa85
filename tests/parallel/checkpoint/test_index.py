"""tensors.json and MANIFEST.json come back as they were written, and an index that contradicts itself is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError
from parallel.checkpoint.files import FileRecord, check_file, read_json, write_file
from parallel.checkpoint.index import Chunk, StoredTensor, encode_index, read_index
from parallel.checkpoint.manifest import (
    INDEX,
    MANIFEST,
    STATE,
    CheckpointManifest,
    encode_manifest,
    encode_state,
    read_manifest,
)
from parallel.errors import CheckpointError

SHARDS = {f"shard-0000{i}.safetensors": FileRecord(100, "0" * 64) for i in range(2)}
HALVES = tuple(Chunk(f"shard-0000{i}.safetensors", (2 * i, 0), (2, 3)) for i in range(2))
TENSORS = {"w": StoredTensor((4, 3), torch.float32, HALVES), "b": StoredTensor((), torch.bfloat16, ())}


HALF = {"file": "shard-00000.safetensors", "offsets": [0, 0], "shape": [2, 3]}


def write(folder: Path, index: bytes) -> CheckpointManifest:
    (folder / INDEX).unlink(missing_ok=True)
    files = {**SHARDS, INDEX: write_file(folder / INDEX, [index])}
    return CheckpointManifest(step=7, ranks=2, torch_version="x", tensor_bytes=48, files=files)


def test_an_index_comes_back_as_it_was_written(tmp_path: Path) -> None:
    tensors = {"w": TENSORS["w"]}
    assert read_index(tmp_path, write(tmp_path, encode_index(tensors))) == tensors


@pytest.mark.parametrize("shape", [[4, 4], [4], [-4, 3]])
def test_chunks_that_do_not_tile_the_tensor_are_refused(tmp_path: Path, shape: list[int]) -> None:
    table = json.loads(encode_index({"w": TENSORS["w"]}))
    table["w"]["shape"] = shape
    with pytest.raises(CheckpointError, match=r"tensors\.json"):
        read_index(tmp_path, write(tmp_path, json.dumps(table).encode()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"chunks": [{**HALF, "offsets": [0, 0]}, {**HALF, "file": "shard-00001.safetensors"}]},
            "overlap or leave gaps",
        ),
        ({"chunks": [HALF, HALF]}, "two pieces of 'w' are in one file"),
        ({"chunks": [HALF]}, "leave gaps"),
        ({"chunks": [{**HALF, "offsets": [3, 0]}]}, "outside its shape"),
        ({"chunks": [{**HALF, "offsets": [-1, 0]}]}, "not as Triaxial writes it"),
        ({"shape": [2**61, 0], "chunks": []}, "too large for any memory"),
        ({"shape": [2**70, 3]}, "not as Triaxial writes it"),
        ({"shape": [float("nan"), 3]}, "not as Triaxial writes it"),
        ({"dtype": ["F32"]}, "not as Triaxial writes it"),
        ({"chunks": None}, "not as Triaxial writes it"),
    ],
)
def test_pieces_that_do_not_tile_the_tensor_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """The first: half of the tensor would be memory that nothing was read into."""
    table = json.loads(encode_index({"w": TENSORS["w"]}))
    table["w"].update(change)
    with pytest.raises(CheckpointError, match=message):
        read_index(tmp_path, write(tmp_path, json.dumps(table).encode()))


@pytest.mark.parametrize("name", ["x" * 10**6, "two\nlines"])
def test_a_name_that_fits_into_no_line_is_refused_in_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="is no name of a tensor") as raised:
        read_index(tmp_path, write(tmp_path, encode_index({name: TENSORS["w"]})))
    assert len(str(raised.value)) < 400


def test_a_file_too_small_for_its_chunks_is_refused(tmp_path: Path) -> None:
    large = StoredTensor((4, 30), torch.float32, tuple(Chunk(c.file, c.offsets, (2, 30)) for c in HALVES))
    with pytest.raises(CheckpointError, match="which has fewer"):
        read_index(tmp_path, write(tmp_path, encode_index({"w": large})))


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "step-000000007"
    folder.mkdir()
    manifest = write(folder, encode_index(TENSORS))
    manifest.files[STATE] = write_file(folder / STATE, [encode_state({"a": [1, None, float("inf")]})])
    write_file(folder / MANIFEST, [encode_manifest(manifest)])
    assert read_manifest(folder) == manifest
    assert read_json(folder, STATE, manifest.files[STATE]) == {"a": [1, None, float("inf")]}
    check_file(folder, INDEX, manifest.files[INDEX])
    with pytest.raises(CheckpointError, match=r"state\.json has \d+ bytes, the manifest says"):
        check_file(folder, STATE, manifest.files[INDEX])
    with pytest.raises(ConfigError, match="not JSON"):
        encode_state({"a": object()})

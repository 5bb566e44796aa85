"""Safetensors files by plain reads and writes, compared with the safetensors library."""

import errno
import json
import math
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from gpt.errors import ConfigError, MachineFault
from gpt.files.safetensors import (
    DTYPES,
    TensorSpec,
    byte_blocks,
    digest,
    encode_file,
    encode_header,
    group_into_files,
    read_header,
    read_tensor,
    write_model,
)
from gpt.files.safetensors_folder import read_model


def test_a_model_in_several_files_is_what_the_library_reads(tmp_path: Path) -> None:
    """Tensors come in any order."""
    tensors = {f"t{i}": torch.randn(3 + i, 5) for i in range(6)}
    pairs = list(tensors.items())
    random.Random(0).shuffle(pairs)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_model(tmp_path, pairs, shapes=shapes, dtype=torch.float32, max_file_bytes=250)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(t.numel() for t in tensors.values())
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)
    assert {name: tensor.tolist() for name, tensor in read_model(tmp_path)} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_every_dtype_of_the_library_is_read(tmp_path: Path) -> None:
    tensors = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_header(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, location in found.items():
        read = read_tensor(location)
        assert read.dtype == tensors[name].dtype
        assert torch.equal(read.to(torch.float64), tensors[name].to(torch.float64)), name


def test_a_file_of_whole_tensors_is_padded_and_says_where_its_parts_are() -> None:
    specs = {"a": TensorSpec((4, 3), torch.float32), "b": TensorSpec((2,), torch.bfloat16)}
    given = {"a": torch.randn(3, 3), "b": torch.randn(2)}
    data = b"".join(encode_file(specs, iter(given.items())))
    found = load(data)
    assert torch.equal(found["a"], torch.cat([given["a"], torch.zeros(1, 3)]))
    assert torch.equal(found["b"], given["b"].to(torch.bfloat16))
    header = encode_header(specs, offsets={"a": (8, 0), "b": (1,)})
    entries = json.loads(header[8:])
    assert len(header) % 8 == 0
    parts = json.loads(entries["__metadata__"]["DCP_SHARDING_INFO"])
    assert parts == {"a": {"saved_offsets": [8, 0]}, "b": {"saved_offsets": [1]}}


def test_tensors_are_divided_by_size_and_width() -> None:
    specs = {
        "a": TensorSpec((10,), torch.float32),
        "b": TensorSpec((10,), torch.float32),
        "c": TensorSpec((100,), torch.float32),
        "d": TensorSpec((1,), torch.uint8),
        "e": TensorSpec((1,), torch.int64),
    }
    assert group_into_files(specs, 80) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert group_into_files(specs, 10**6) == [["a", "b", "c", "d"], ["e"]]
    assert group_into_files({}, 80) == [[]]


def test_bytes_come_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt.files.safetensors._BLOCK_BYTES", 100)
    tensor = torch.randn(11, 7)
    blocks = list(byte_blocks(tensor, torch.float32))
    assert [len(block) for block in blocks] == [84, 84, 84, 56]
    assert b"".join(blocks) == tensor.numpy().tobytes()
    assert digest(tensor, torch.float32) == digest(tensor.T.contiguous().T, torch.float32)
    assert digest(tensor, torch.float32) != digest(tensor, torch.bfloat16)


def test_random_damage_to_a_header_is_refused_or_harmless(tmp_path: Path) -> None:
    """A damaged header gives ConfigError, or tensors that lie inside the file."""
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.randn(4, 3), "b": torch.zeros(3)}, path)
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["b", "w"]
    rng, refused = random.Random(0), []
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data) - 60)] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])
        try:
            for location in read_header(path).values():
                assert location.start + math.prod(location.shape) * location.dtype.itemsize <= path.stat().st_size
        except ConfigError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert not any("\n" in message for message in refused)


def test_a_disk_that_fails_is_no_damage_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 1, so that a launcher starts again; it was 2, as for a file that is none of this kind."""
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")

    def fails(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(MachineFault, match=r"a\.safetensors cannot be read: input/output error"):
        read_header(tmp_path / "a.safetensors")

"""Saves: what is on disk, in which order, and after which errors. One process, and four gloo ranks."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gpt.errors import ConfigError
from gpt.training.config import Retention
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import load_checkpoint, read_tensors
from parallel.checkpoint.manifest import INDEX, MANIFEST, read_manifest
from parallel.checkpoint.save import save_checkpoint
from parallel.errors import CheckpointError


def test_round_trip_without_process_group(tmp_path: Path, cases: Any) -> None:
    tensors = {
        "matrix.weight": torch.randn(3, 4).t(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "half": torch.randn(5).bfloat16(),
        "small": torch.randn(6).to(torch.float8_e4m3fn),
        'näme with spaces/"quotes"': torch.arange(5),
    }
    tensors["tied"] = tensors["half"]
    state = {"step": 5, "data": {"position": 12345678901234}, "rng": [1, 2], "best": float("inf")}
    path = save_checkpoint(tmp_path, step=5, tensors=tensors, state=state, keep=Retention(1))
    assert path == tmp_path / "step-000000005"
    checkpoint = verify_checkpoint(path)
    assert checkpoint.state == state
    found = {name: (stored.shape, stored.dtype) for name, stored in checkpoint.index.items()}
    assert found == {name: (t.shape, t.dtype) for name, t in tensors.items()}
    target = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load_checkpoint(checkpoint, tensors=target, complete=True)
    assert all(cases.same(target[name], tensor) for name, tensor in tensors.items())
    read = dict(read_tensors(checkpoint))
    assert list(read) == sorted(tensors)
    assert all(cases.same(read[name], tensor) for name, tensor in tensors.items())
    assert [name for name, _ in read_tensors(checkpoint, ["tied", "flags"])] == ["tied", "flags"]
    with pytest.raises(ConfigError, match="holds no tensor 'absent'"):
        read_tensors(checkpoint, ["absent"])


def test_every_piece_is_aligned(tmp_path: Path) -> None:
    dtypes = [torch.uint8, torch.float64, torch.bfloat16, torch.float32]
    tensors = {f"t{i}": torch.ones(3, dtype=dtype) for i, dtype in enumerate(dtypes)}
    path = save_checkpoint(tmp_path, step=1, tensors=tensors, state={}, keep=Retention(1))
    data = (path / "shard-00000.safetensors").read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    assert header_bytes % 8 == 0
    header = json.loads(data[8 : 8 + header_bytes])
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0


def test_same_content_gives_the_same_files(tmp_path: Path, cases: Any) -> None:
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, step=1, tensors=cases.some_tensors(1.0), state={"x": 1}, keep=Retention(1))
    manifests = [(tmp_path / name / "step-000000001" / MANIFEST).read_bytes() for name in ("a", "b")]
    assert manifests[0] == manifests[1]


def test_everything_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: Any) -> None:
    done = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        done.append(f"rename to {Path(target).name}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    save_checkpoint(tmp_path / "run", step=1, tensors=cases.some_tensors(1.0), state={}, keep=Retention(1))
    made, *files, hidden, renamed, parent = done
    assert made == tmp_path.name, "the new directory itself"
    assert files == ["shard-00000.safetensors", INDEX, "state.json", MANIFEST]
    assert hidden.startswith(".saving-step-000000001-")
    assert renamed == "rename to step-000000001"
    assert parent == "run"


def test_an_interrupt_stays_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: Any) -> None:
    save_checkpoint(tmp_path, step=1, tensors=cases.some_tensors(1.0), state={}, keep=Retention(1))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, step=2, tensors=cases.some_tensors(2.0), state={}, keep=Retention(1))
    assert cases.newest(tmp_path) == (tmp_path / "step-000000001", [])
    save_checkpoint(tmp_path, step=2, tensors=cases.some_tensors(2.0), state={}, keep=Retention(1))
    assert os.listdir(tmp_path) == ["step-000000002"]


def test_a_directory_that_cannot_be_written_to_is_an_error(tmp_path: Path, cases: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path / "file" / "run", step=1, tensors=cases.some_tensors(1.0), state={}, keep=Retention(1))
    assert caught.match("step-000000001: not saved: Not a directory on rank 0")


def test_four_ranks_write_every_byte_once(four: Path) -> None:
    path = four / "run" / "step-000000010"
    whole_bytes = sum(t.nbytes for t in load_file(four / "reference.safetensors").values()) + 4 * 48 + 4000
    shards = sorted(path.glob("shard-*"))
    assert len(shards) == 4
    data_bytes = [p.stat().st_size - 8 - int.from_bytes(p.read_bytes()[:8], "little") for p in shards]
    assert sum(data_bytes) == whole_bytes == read_manifest(path).tensor_bytes
    assert read_manifest(path).ranks == 4


def test_a_lost_rank_leaves_earlier_checkpoints_untouched(four: Path) -> None:
    assert {p.name for p in list_checkpoints(four / "run")} == {"step-000000010", "step-000000012"}
    verify_checkpoint(four / "run" / "step-000000010")


def test_an_invalid_step_or_retention_is_refused(tmp_path: Path) -> None:
    for step, keep_last in ((-1, 1), (1, 0)):
        with pytest.raises(ConfigError, match=f"not step {step} and keep_last {keep_last}"):
            save_checkpoint(tmp_path, step=step, tensors={}, state={}, keep=Retention(keep_last))

"""Damaged and hostile checkpoints are found before a tensor is used, are skipped, and never execute code."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.training.config import Retention
from parallel.checkpoint.files import FileRecord
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import read_checkpoint_header, verify_checkpoint
from parallel.checkpoint.load import load_checkpoint, read_tensors
from parallel.checkpoint.manifest import INDEX, MANIFEST, encode_manifest, read_manifest
from parallel.checkpoint.save import save_checkpoint
from parallel.errors import CheckpointError


@pytest.fixture
def two(tmp_path: Path, cases: Any) -> tuple[Path, Path]:
    """A directory with steps 1 and 2; the paths of both."""
    save = [
        save_checkpoint(
            tmp_path / "run", step=step, tensors=cases.some_tensors(step), state={"value": step}, keep=Retention(2)
        )
        for step in (1, 2)
    ]
    return save[0], save[1]


def skipped_reason(first: Path, second: Path, cases: Any) -> str:
    """Check that the first checkpoint is chosen and loads; return the reason why the second is skipped."""
    latest, skipped = cases.newest(first.parent)
    assert latest == first
    assert [path for path, _ in skipped] == [second]
    assert cases.loaded(first, 1.0)
    return skipped[0][1]


def test_any_flipped_bit_is_found(two: tuple[Path, Path], cases: Any) -> None:
    for name in sorted(os.listdir(two[1])):
        original = (two[1] / name).read_bytes()
        step = 1 if name == MANIFEST else 97
        for position in {*range(0, len(original), step), len(original) - 1}:
            cases.flip_bit(two[1] / name, position)
            with pytest.raises(CheckpointError) as caught:
                verify_checkpoint(two[1])
            reason = caught.value.reason
            assert name in reason or name == MANIFEST
            (two[1] / name).write_bytes(original)
        cases.flip_bit(two[1] / name, len(original) // 2)
        skipped_reason(*two, cases)
        (two[1] / name).write_bytes(original)
    assert cases.newest(two[1].parent) == (two[1], [])


def test_a_socket_in_place_of_a_manifest_is_damage(
    two: tuple[Path, Path], cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (two[1] / MANIFEST).unlink()
    monkeypatch.chdir(two[1])  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as no_file:
        no_file.bind(MANIFEST)
        assert f"{MANIFEST} is no regular file" in skipped_reason(*two, cases)
        with pytest.raises(CheckpointError, match="is no regular file"):
            read_checkpoint_header(two[1])


@pytest.mark.parametrize("name", ["shard-00000.safetensors", INDEX, "state.json", MANIFEST])
def test_truncated_and_missing_files_are_found(two: tuple[Path, Path], name: str, cases: Any) -> None:
    data = (two[1] / name).read_bytes()
    (two[1] / name).write_bytes(data[:-1])
    assert name in skipped_reason(*two, cases)
    (two[1] / name).write_bytes(b"")
    assert name in skipped_reason(*two, cases)
    (two[1] / name).unlink()
    assert f"{name} is missing" in skipped_reason(*two, cases)
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(verify_checkpoint(two[1]), tensors=cases.some_tensors(0.0))
    with pytest.raises(CheckpointError, match="is missing"):
        list(read_tensors(verify_checkpoint(two[1])))


def test_no_whole_checkpoint(two: tuple[Path, Path], tmp_path: Path) -> None:
    for path in two:
        (path / MANIFEST).unlink()
    latest, skipped = find_latest(tmp_path / "run")
    assert latest is None
    assert [path for path, _ in skipped] == [two[1], two[0]]
    assert find_latest(tmp_path / "absent") == (None, [])
    with pytest.raises(CheckpointError, match="no such folder"):
        read_checkpoint_header(tmp_path / "absent")


def test_links_and_pipes_are_not_followed(two: tuple[Path, Path], tmp_path: Path, cases: Any) -> None:
    shard, verified = two[1] / "shard-00000.safetensors", verify_checkpoint(two[1])
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in skipped_reason(*two, cases)
    with pytest.raises(CheckpointError, match="symbolic link"):
        load_checkpoint(verified, tensors=cases.some_tensors(0.0))
    shard.unlink()
    os.mkfifo(shard)
    assert "no regular file" in skipped_reason(*two, cases)
    (tmp_path / "run" / "step-000000009").symlink_to(two[0])
    assert list_checkpoints(tmp_path / "run") == [two[1], two[0]]


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/../b", "..", "shard-00000.safetensors/..", "x.pkl"])
def test_manifest_with_foreign_names_is_refused(two: tuple[Path, Path], name: str, cases: Any) -> None:
    manifest = read_manifest(two[1])
    files = {**manifest.files, name: FileRecord(1, "0" * 64)}
    (two[1] / MANIFEST).write_bytes(encode_manifest(replace(manifest, files=files)))
    assert "no file of a checkpoint" in skipped_reason(*two, cases)


def test_manifest_of_another_step_or_version_is_refused(two: tuple[Path, Path], cases: Any) -> None:
    shutil.copy(two[0] / MANIFEST, two[1] / MANIFEST)
    assert "is of step 1" in skipped_reason(*two, cases)
    text = (two[0] / MANIFEST).read_text().replace('"format_version": 1', '"format_version": 2')
    (two[1] / MANIFEST).write_text(text)
    assert "format version 2" in skipped_reason(*two, cases)


def test_hostile_shards_and_indices_are_refused(two: tuple[Path, Path], cases: Any) -> None:
    def shard(header: dict[str, object], data: bytes) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    w = {"dtype": "F32", "shape": [40, 5], "data_offsets": [0, 800]}
    b = {"dtype": "BF16", "shape": [7], "data_offsets": [800, 814]}
    for data in [
        (1 << 62).to_bytes(8, "little") + bytes(1000),
        shard({"w": w, "b": {**b, "data_offsets": [790, 804]}}, bytes(804)),  # overlapping
        ((100 << 20) + 1).to_bytes(8, "little") + bytes(1000),  # a header larger than the format allows
        shard({"w": {**w, "shape": [1 << 40, 5]}, "b": b}, bytes(814)),
        shard({"w": {**w, "data_offsets": [0, 1 << 60]}, "b": b}, bytes(814)),
        shard({"w": {**w, "data_offsets": [-8, 792]}, "b": b}, bytes(814)),
        shard({"w": {**w, "shape": [1 << 32, 1 << 32, 0]}, "b": b}, bytes(814)),
        shard({"w": w, "x": b}, bytes(814)),
        shard({"w": w, "b": {**b, "dtype": "F16"}}, bytes(814)),
        shard({"w": w, "b": {**b, "shape": [7, 1]}}, bytes(814)),
    ]:
        cases.replace_file(two[1], "shard-00000.safetensors", data)
        fitting = verify_checkpoint(two[1])
        with pytest.raises(CheckpointError, match=r"shard-00000\.safetensors"):
            load_checkpoint(fitting, tensors=cases.some_tensors(0.0))
        with pytest.raises(CheckpointError, match=r"shard-00000\.safetensors"):
            list(read_tensors(fitting))
    index = json.loads((two[0] / INDEX).read_text())
    chunk = index["w"]["chunks"][0]
    for shape, chunks in [
        ([40, 5], [{**chunk, "shape": [20, 5]}]),
        ([40, 5], [{**chunk, "offsets": [-1, 0]}]),
        ([1 << 40, 5], [{**chunk, "shape": [1 << 40, 5]}]),
        ([40, 5], [{**chunk, "file": "../../secret"}]),
        ([40, 5], [{**chunk, "offsets": [0]}]),
        ([40, 5], "chunks"),
    ]:
        cases.replace_file(
            two[1], INDEX, json.dumps({"w": {"dtype": "F32", "shape": shape, "chunks": chunks}}).encode()
        )
        fitting = verify_checkpoint(two[1])
        with pytest.raises(CheckpointError, match=r"tensors\.json"):
            load_checkpoint(fitting, tensors=cases.some_tensors(0.0))
    cases.replace_file(two[1], "state.json", b"[" * 100_000)
    with pytest.raises(CheckpointError, match="no valid JSON"):
        read_checkpoint_header(two[1])


def test_names_of_tensors_are_not_paths(tmp_path: Path, cases: Any) -> None:
    """Whatever a tensor's name is, only the files of the checkpoint are written and read."""
    names = ["../../outside", "/etc/passwd", "..", "a/../../b", "shard-00000.safetensors"]
    tensors = {name: torch.full((3,), float(i)) for i, name in enumerate(names)}
    path = save_checkpoint(tmp_path / "run", step=1, tensors=tensors, state={}, keep=Retention(1))
    assert sorted(os.listdir(path)) == [MANIFEST, "shard-00000.safetensors", "state.json", INDEX]
    assert os.listdir(tmp_path) == ["run"]
    assert all(cases.same(tensors[name], tensor) for name, tensor in read_tensors(verify_checkpoint(path)))


def test_pickles_are_never_opened(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("damage", "pickle", tmp_path) == [0]


def test_all_ranks_skip_the_same_damage(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("damage", "flips", tmp_path, 2, COUNT="9") == [0, 0]


@pytest.mark.rehearse
def test_all_ranks_skip_the_same_damage_300_times(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("damage", "flips", tmp_path, 2, COUNT="300", timeout_s=1200) == [0, 0]
    print((tmp_path / "damage.json").read_text())


@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
@pytest.mark.parametrize("persists", [False, True])
def test_a_disk_that_refuses_a_read_is_asked_again(two: tuple[Path, Path], persists: bool) -> None:
    """With errors of the kernel. One that persists in the newest checkpoint ends the start: an older one would lose
    steps, and a restart tries again."""
    once = f"""
from parallel.checkpoint.manifest import read_manifest
print(read_manifest(Path({str(two[1])!r})).step)
"""
    for_ever = f"""
from parallel.checkpoint.find import find_latest
time.sleep = lambda _: None
try:
    find_latest(Path({str(two[1].parent)!r}))
except ConfigError as error:
    print(error)
    sys.exit(error.exit_status)
"""
    code = "import sys, time\nfrom pathlib import Path\nfrom gpt.errors import ConfigError\n"
    code += for_ever if persists else once
    fault = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-P", str(two[1] / MANIFEST)]
    fault += ["-e", f"inject=read:error=EIO:when={'1+' if persists else '1'}"]
    done = subprocess.run([*fault, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == int(persists), done.stderr
    error = f"checkpoint {two[1]}: {MANIFEST} cannot be read: Input/output error. If the disk goes on refusing it, "
    error += "move it away; an older one is then used\n"
    assert done.stdout == (error if persists else "2\n")

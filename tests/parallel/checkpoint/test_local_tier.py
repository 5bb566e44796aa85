"""The local tier: which checkpoints of a rank are found, in one process. test_background.py has four ranks."""

from pathlib import Path
from typing import Any

import torch

from gpt.training.config import Retention
from parallel.checkpoint.local_tier import (
    discard_all_local,
    discard_local_after,
    find_newest_local,
    is_local,
    load_local,
    mark,
    rank_directory,
    tier_directory,
)
from parallel.checkpoint.save import save_checkpoint

LAYOUT: dict[str, object] = {"tensor": 1}


def save(directory: Path, step: int, tensors: dict[str, torch.Tensor], *, run_id: str = "r") -> Path:
    state = mark({"step": step, "run_id": run_id}, save_id=f"s-{step}", layout=LAYOUT)
    return save_checkpoint(rank_directory(directory), step=step, tensors=tensors, state=state, keep=Retention(3))


def test_the_newest_checkpoint_of_this_run_and_layout_is_found_and_loaded(tmp_path: Path, cases: Any) -> None:
    paths = [save(tmp_path, step, cases.some_tensors(step)) for step in (1, 2)]
    other = save(tmp_path, 3, cases.some_tensors(3), run_id="other")
    found, messages, _ = find_newest_local(tmp_path, run_id="r", layout=LAYOUT)
    assert found is not None
    assert (found.path, found.step, is_local(found)) == (paths[1], 2, True)
    assert messages == [f"skipped {other}: it is of another run"]
    tensors = cases.some_tensors(-1)
    load_local(found, tensors)
    assert all(cases.same(tensors[name], tensor) for name, tensor in cases.some_tensors(2).items())
    changed, messages, _ = find_newest_local(tmp_path, run_id="r", layout={"tensor": 2})
    assert changed is None
    assert "another layout (tensor 1 then, 2 now)" in " ".join(messages)
    discard_local_after(tmp_path, step=1)
    assert [path.name for path in rank_directory(tmp_path).iterdir()] == [paths[0].name]
    discard_all_local(tmp_path)
    assert not tmp_path.exists()


def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, cases: Any) -> None:
    first, second = (save(tmp_path, step, cases.some_tensors(step)) for step in (1, 2))
    cases.flip_bit(second / "shard-00000.safetensors", 700)
    found, messages, fault = find_newest_local(tmp_path, run_id="r", layout=LAYOUT)
    assert found is not None
    assert (found.path, fault) == (first, False)
    (message,) = messages
    assert message.startswith(f"skipped step 2 of {tmp_path}: shard-00000.safetensors is damaged")


def test_a_tier_that_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "rank-00000").touch()  # listing it fails, as on a broken disk
    found, messages, fault = find_newest_local(tmp_path, run_id="", layout={})
    assert (found, fault) == (None, False)
    assert messages == [f"skipped {tmp_path}/rank-00000: it cannot be read: Not a directory"]
    discard_local_after(tmp_path, step=0)


def test_runs_of_one_name_have_different_folders(tmp_path: Path) -> None:
    folders = {tier_directory(tmp_path, tmp_path / parent / "run") for parent in ("a", "b")}
    assert len(folders) == 2
    assert all(folder.name.startswith("run-") for folder in folders)

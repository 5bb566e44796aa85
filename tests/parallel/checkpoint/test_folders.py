"""The folders of one directory: which are listed, deleted, replaced, and what dead saves leave behind."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpt.training.config import Retention
from parallel.checkpoint.folders import list_checkpoints, list_unusable, make_hidden, step_name, step_of
from parallel.checkpoint.save import save_checkpoint


def test_retention_replacement_and_remains_of_dead_saves(tmp_path: Path, cases: Any) -> None:
    def save(step: int, keep_last: int) -> list[str]:
        save_checkpoint(tmp_path, step=step, tensors=cases.some_tensors(step), state={}, keep=Retention(keep_last))
        return sorted(os.listdir(tmp_path))

    for leftover in (".saving-step-000000001-ab", ".deleting-step-000000001-ab"):
        (tmp_path / leftover / "deep").mkdir(parents=True)
    assert save(100, 3) == ["step-000000100"]
    save(200, 3)
    assert save(300, 2) == ["step-000000200", "step-000000300"]
    # Resumed at 200: the later step stays, and does not count.
    assert save(250, 2) == ["step-000000200", "step-000000250", "step-000000300"]
    shutil.rmtree(tmp_path / "step-000000300")
    assert save(260, 1) == ["step-000000260"]
    assert save(260, 1) == ["step-000000260"]
    # A save of the same step died between its two renames: the old one is found, and the next save restores it.
    aside = tmp_path / ".replaced-step-000000260-0123456789abcdef"
    (tmp_path / "step-000000260").rename(aside)
    assert cases.newest(tmp_path) == (aside, [])
    assert cases.loaded(aside, 260.0)
    assert save(1_234_567_890_123, 2) == ["step-000000260", "step-1234567890123"]
    aside.mkdir()
    assert save(1_234_567_890_124, 1) == ["step-1234567890124"]


def test_permanent_checkpoints_are_kept(tmp_path: Path, cases: Any) -> None:
    for step in range(1, 6):
        keep = Retention(1, lambda step: step % 2 == 0)
        save_checkpoint(tmp_path, step=step, tensors=cases.some_tensors(step), state={}, keep=keep)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{step:09d}" for step in (5, 4, 2)]


def test_what_is_no_folder_is_listed_with_the_reason(tmp_path: Path, cases: Any) -> None:
    path = save_checkpoint(tmp_path, step=4, tensors=cases.some_tensors(4), state={}, keep=Retention(1))
    link, file = tmp_path / step_name(9), tmp_path / step_name(7)
    link.symlink_to(path)
    file.touch()
    reasons = [(link, "it is a symbolic link, which is not followed"), (file, "it is no folder")]
    assert list_unusable(tmp_path) == reasons
    assert list_unusable(tmp_path, at_most=8) == reasons[1:]
    assert list_unusable(tmp_path / "nothing") == []
    assert list_checkpoints(tmp_path) == [path]
    assert cases.newest(tmp_path) == (path, reasons)
    assert cases.newest(tmp_path, newer_than=7) == (None, reasons[:1])


def test_steps_and_their_names() -> None:
    assert step_of(step_name(123)) == 123
    assert step_name(10**12) == "step-1000000000000"
    for name in ("step-12", "x-step-000000001", "step-000000001x", ".saving-step-000000001-ab"):
        assert step_of(name) is None


def test_a_deleted_run_directory_is_not_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError):
        make_hidden(run / "checkpoints" / "step-000000001")
    assert not run.exists()
    run.mkdir()
    assert make_hidden(run / "checkpoints" / "step-000000001").is_dir()

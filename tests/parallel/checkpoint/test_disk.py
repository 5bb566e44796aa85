"""Saves to a disk that is full or fails: the error is reported, earlier checkpoints stay, the next save works."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from parallel.errors import CheckpointError


def test_full_disk(small_disk: Any, cases: Any) -> None:
    assert cases.run_job("disk", "full", small_disk(8 << 20)) == [0]


def test_a_disk_that_does_not_report_its_free_space_fails_the_save(
    tmp_path: Path, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "disk_usage", refuse)
        with pytest.raises(CheckpointError, match=r"not saved: Input/output error.*; it needs [0-9]+ bytes; earlier"):
            cases.save_value(tmp_path, 1, 1)
    assert os.listdir(tmp_path) == []


@pytest.mark.rehearse
@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
def test_every_call_fails_once(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("disk", "errors", tmp_path, STRIDE="1", timeout_s=3000) == [0]
    print((tmp_path / "errors.json").read_text())

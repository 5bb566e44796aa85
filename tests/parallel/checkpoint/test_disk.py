"""A disk that is full or fails under a save: it is given up and told, what was there stays, the next works."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from parallel.checkpoint.local_tier import discard_local_after, find_newest_local
from parallel.errors import CheckpointError


def test_full_disk(small_disk: Any, cases: Any) -> None:
    assert cases.run_job("disk", "full", small_disk(8 << 20)) == [0]


def test_a_disk_that_does_not_tell_its_room_fails_the_save_in_good_order(
    tmp_path: Path, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "disk_usage", refuse)
        with pytest.raises(CheckpointError, match=r"not saved: Input/output error.*; it needs [0-9]+ bytes; earlier"):
            cases.save_value(tmp_path, 1, 1)
    assert os.listdir(tmp_path) == []


def test_a_second_tier_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "rank-00000").touch()  # to list it is an error, as of a disk that fails
    found, said = find_newest_local(tmp_path, run_id="", layout={})
    assert found is None
    assert said == [f"skipped {tmp_path}/rank-00000: it cannot be read: Not a directory"]
    discard_local_after(tmp_path, step=0)


@pytest.mark.rehearse
@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
def test_every_call_fails_once(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("disk", "errors", tmp_path, STRIDE="1", timeout_s=3000) == [0]
    print((tmp_path / "errors.json").read_text())

"""Describe and lock files, and report a full disk."""

import os
from pathlib import Path

import pytest

from data_prep.execution.files import describe_file, disk_errors, existing_parent, lock_folder, make_attempts
from gpt.errors import ConfigError


def test_a_full_disk_is_an_error_of_one_line(small_disk):
    """A real full file system: a tmpfs of 256 KiB."""
    path = small_disk(256 << 10) / "big"
    with (
        pytest.raises(ConfigError, match=r"big: the disk is full \([\d,]+ bytes free in ") as caught,
        disk_errors(path),
    ):
        path.write_bytes(bytes(1 << 20))
    assert "\n" not in str(caught.value)


def test_a_forbidden_write_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/below: cannot write here \(Not a directory\)"), disk_errors(tmp_path):
        (tmp_path / "file/below").write_text("")


def test_a_file_is_described_by_size_time_and_digest(tmp_path):
    xxhash = pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert describe_file(tmp_path / "a") == {
        "bytes": 3_000_000,
        "mtime_ns": (tmp_path / "a").stat().st_mtime_ns,
        "digest": xxhash.xxh3_128_hexdigest(b"abc" * 1_000_000),
    }


def test_a_folder_is_locked_by_one_process_at_a_time(tmp_path):
    with (
        lock_folder(tmp_path),
        pytest.raises(ConfigError, match="another run is writing its corpus here"),
        lock_folder(tmp_path),
    ):
        pass
    with lock_folder(tmp_path):
        assert list(tmp_path.iterdir()) == []
    assert existing_parent(tmp_path / "missing/deeper") == tmp_path


def test_attempts_are_made_although_another_share_removes_the_empty_folder_around_them(tmp_path, monkeypatch):
    attempts, make, removed = tmp_path / ".tmp" / "-1-of-2", os.mkdir, []

    def removing(path, *mode):
        if Path(path) == attempts and attempts.parent.exists() and not removed:
            attempts.parent.rmdir()
            removed.append(path)
        make(path, *mode)

    monkeypatch.setattr(os, "mkdir", removing)
    make_attempts(attempts)
    assert removed
    assert attempts.is_dir()

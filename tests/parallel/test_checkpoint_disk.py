"""A disk that is full or fails under a save: it is given up and told, what was there stays, the next works."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def test_full_disk(tmp_path: Path, cases: Any) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        assert cases.run_job("disk", "full", tmp_path) == [0]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.rehearse
@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
def test_every_call_fails_once(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("disk", "errors", tmp_path, STRIDE="1", timeout_s=3000) == [0]
    print((tmp_path / "errors.json").read_text())

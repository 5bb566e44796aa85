"""A save that is killed at any moment leaves a whole checkpoint: blocking, background and node-local saves."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace: apt-get install strace"
)


def test_killed_at_file_operations(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("kills", "operations", tmp_path, STRIDE="3") == [0]
    assert min(json.loads((tmp_path / "counts.json").read_text()).values()) > 20


def test_killed_at_random_moments(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("kills", "random", tmp_path, KILLS="6") == [0]


@pytest.mark.rehearse
def test_killed_at_every_file_operation(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("kills", "operations", tmp_path, STRIDE="1", timeout_s=1200) == [0]
    print((tmp_path / "counts.json").read_text())


@pytest.mark.rehearse
@pytest.mark.timeout(3600)
@needs_strace
def test_killed_at_every_system_call(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("kills", "calls", tmp_path, STRIDE="1", timeout_s=3000) == [0]
    print((tmp_path / "kills.json").read_text())


@pytest.mark.rehearse
@pytest.mark.timeout(3600)
def test_killed_at_600_random_moments(tmp_path: Path, cases: Any) -> None:
    """200 kills each of blocking, background and node-local saves."""
    assert cases.run_job("kills", "random", tmp_path, KILLS="600", timeout_s=3000) == [0]
    print((tmp_path / "kills.json").read_text())

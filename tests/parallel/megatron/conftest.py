"""One launch on 2 ranks for all tests of the Megatron room; see tests/parallel/megatron_parts.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "megatron_parts.py"


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """The result of each rank."""
    pytest.importorskip("megatron.core")
    out = tmp_path_factory.mktemp("megatron") / "out.json"
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(out)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(out.read_text())

"""Background saves, shared and node-local, on four gloo ranks. One rank's disk fails, and finally one rank dies."""

import signal
from pathlib import Path
from typing import Any


def test_four_ranks(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("background", "four", tmp_path, 4) == [0, 0, 0, -signal.SIGKILL]

"""Saves beside training, and the second tier, on four gloo ranks of which one fails, and at last dies."""

import signal
from pathlib import Path
from typing import Any


def test_four_ranks(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("background", "four", tmp_path, 4) == [0, 0, 0, -signal.SIGKILL]

"""Whether the memory of a run grows."""

import json

import numpy as np
import pytest

from launch.reports.memory import memory_trends, trend_of
from launch.runs.history import read_history
from launch.runs.series import Series

STEPS = np.arange(0, 4000, 10)
NOISE = np.random.default_rng(0).normal(size=STEPS.size) * 2**20


def test_growth_is_that_of_the_second_half_and_beyond_the_noise():
    leak = Series(STEPS, 2.0**30 + 2**21 * STEPS / 1000 + NOISE / 100)
    assert trend_of(leak) == pytest.approx(2**21, rel=0.02)
    warm_up = Series(STEPS, np.where(STEPS < 1500, STEPS * 1e6, 1.5e9))
    assert trend_of(warm_up) == pytest.approx(0.0, abs=1.0)
    assert trend_of(Series(STEPS, 2.0**30 + NOISE)) == 0.0, "noise is no growth"
    assert trend_of(Series(STEPS[:10], NOISE[:10])) is None


def test_the_words_name_the_memory_that_grows(tmp_path):
    def trends(**columns):
        lines = [
            {"step": int(step)} | {name: float(values[i]) for name, values in columns.items()}
            for i, step in enumerate(STEPS)
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return memory_trends(read_history(tmp_path))

    level, growing = np.full(STEPS.size, 2.0**30), 2.0**30 + 2**21 * STEPS / 1000
    resident, gpu = "memory/resident_bytes", "memory/gpu_allocated_bytes"
    assert trends(peak_memory_bytes=growing) == "it grows by 2.00 MiB per 1,000 steps in the second half"
    assert trends(**{"peak_memory_bytes": growing, resident: level}) == "resident memory is level in the second half"
    assert trends(**{resident: growing, gpu: level}) == (
        "allocated GPU memory is level, resident memory grows by 2.00 MiB per 1,000 steps in the second half"
    )

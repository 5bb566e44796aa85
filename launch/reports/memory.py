"""The memory of a run: which metrics belong together, and whether it grows."""

import numpy as np

from launch.runs.figures import OF_MACHINE, OF_RANK
from launch.runs.history import RunHistory
from launch.runs.series import Series

# A leak shows in the first one that a run has: the peak also grows when only the largest batch does.
_TRENDS = {
    "memory/gpu_allocated_bytes": "allocated GPU memory",
    "memory/resident_bytes": "resident memory",
    "peak_memory_bytes": "it",
}
MIN_STEPS = 20


def trend_of(series: Series) -> float | None:
    """Bytes that the second half of a series gains per 1,000 steps; 0 within its noise, None if it is too short."""
    if len(series.steps) < MIN_STEPS:
        return None
    steps, values = (column[len(column) // 2 :] for column in (series.steps, series.values))
    span = float(steps[-1] - steps[0])
    if span == 0:
        return None
    slope, base = np.polyfit(steps - steps[0], values, 1)
    noise = float(np.std(values - slope * (steps - steps[0]) - base))
    return float(slope) * 1000 if abs(slope * span) > 2 * noise else 0.0


def memory_trends(history: RunHistory) -> str:
    """How fast the memory of the main rank grows, in words; "" for a short run."""
    parts: list[str] = []
    for name, words in _TRENDS.items():
        series = history.metrics.get(name)
        slope = trend_of(series) if series is not None else None
        if slope is None or (words == "it" and parts):
            continue
        size = f"{abs(slope) / 2**20:.2f} MiB per 1,000 steps"
        change = "is level" if size.startswith("0.00") else f"{'grows' if slope > 0 else 'falls'} by {size}"
        parts.append(f"{words} {change}")
    return f"{', '.join(parts)} in the second half" if parts else ""


def growth(history: RunHistory) -> dict[str, float]:
    """Bytes per 1,000 steps by metric, for programs; see `trend_of`."""
    trends = {name: trend_of(history.metrics[name]) for name in (*OF_RANK, OF_MACHINE) if name in history.metrics}
    return {name: slope for name, slope in trends.items() if slope is not None}

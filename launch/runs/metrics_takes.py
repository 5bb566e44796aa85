"""Collect metrics by name from the records of metrics.jsonl, line by line."""

import math
from typing import Any

from launch.runs.series import MAX_POINTS, GrowingSeries, Take

MAX_VALUE = 1e200  # larger values, NaN and infinity are not plotted: differences must not overflow
STEP_TOKENS = "step_tokens"  # the name of a derived metric


class MetricsTakes:
    """The metrics of a file while it is read. A new take starts wherever the steps go back."""

    def __init__(self) -> None:
        self._takes: list[dict[str, GrowingSeries]] = []
        self._last_step = math.inf
        self._records = 0

    def add(self, record: dict[str, Any]) -> None:
        """Add the values of a line. A record without a valid step is left out."""
        step = record.pop("step", None)
        if not isinstance(step, int) or not 0 <= step < 2**62:
            return
        if step < self._last_step:
            self._takes.append({})
        self._last_step, take = step, self._takes[-1]
        _add_step_tokens(record)
        for name, value in record.items():
            if isinstance(value, (int, float)) and -MAX_VALUE < value < MAX_VALUE:
                if (series := take.get(name)) is None:
                    series = take[name] = GrowingSeries()
                series.steps.append(step)
                series.values.append(value)
        self._records += 1
        if self._records % MAX_POINTS == 0:
            for series in take.values():
                series.thin()

    def takes(self) -> list[Take]:
        """All takes so far, in the order of the file."""
        return [{name: series.series() for name, series in take.items()} for take in self._takes]


def _add_step_tokens(record: dict[str, Any]) -> None:
    """Add the tokens of the step, which its speed and its duration give."""
    speed, seconds = record.get("tokens_per_s"), record.get("step_s")
    if isinstance(speed, float) and isinstance(seconds, float) and math.isfinite(speed * seconds):
        record[STEP_TOKENS] = round(speed * seconds)

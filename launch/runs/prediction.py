"""The step that the planner predicted when a run started, kept in its directory, and the step that it measured."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.runs.metrics_takes import STEP_TOKENS

if TYPE_CHECKING:
    from launch.runs.history import RunHistory

PREDICTION = "prediction.json"


@dataclass(frozen=True)
class KeptPrediction:
    """A step of `tokens` tokens on `device`. `low_s` and `high_s` bound 90% of such runs.

    `mfu`: None where the run logs none. `peak_bytes`: of the main rank, with the `base_bytes` that its process held
    before it had a model; None if unknown. `network`, `node`, `stack`: as in `triaxial plan`.
    """

    device: str
    network: str
    node: int
    stack: str
    tokens: int
    step_s: float
    low_s: float
    high_s: float
    mfu: float | None = None
    peak_bytes: int | None = None
    base_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PredictedFigure:
    """A predicted figure and the measured one. `ratio`: measured over predicted."""

    name: str
    predicted: float
    measured: float
    inside: bool | None = None  # of the 90% interval, where there is one

    @property
    def ratio(self) -> float:
        return self.measured / self.predicted


def prediction_of(table: dict[str, Any]) -> KeptPrediction | None:
    """The prediction in the file's JSON; None if it is empty or damaged."""
    texts = [table.get(key) for key in ("device", "network", "stack")]
    wholes = [table.get(key) for key in ("node", "tokens")]
    times = [_number(table.get(key)) for key in ("step_s", "low_s", "high_s")]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int) and n > 0 for n in wholes):
        return None
    if any(time is None for time in times):
        return None
    peak, base = _number(table.get("peak_bytes")), _number(table.get("base_bytes"))
    known: dict[str, Any] = {key: table[key] for key in ("device", "network", "stack", "node", "tokens")}
    known |= dict(zip(("step_s", "low_s", "high_s"), times, strict=True))
    known["mfu"] = _number(table.get("mfu"))
    known["peak_bytes"] = None if peak is None else int(peak)
    return KeptPrediction(**known, base_bytes=0 if base is None else int(base))


def measured_step_s(history: "RunHistory", *, tokens: int) -> float | None:
    """The median of the newest steps with this number of tokens; None while the batch still grows."""
    seconds, sizes = history.metrics.get("step_s"), history.metrics.get(STEP_TOKENS)
    if seconds is None or sizes is None or abs(float(np.median(sizes.recent)) / tokens - 1) > 0.01:
        return None
    found = float(np.median(seconds.recent))
    return found if 0 < found < math.inf else None


def compared_figures(history: "RunHistory") -> list[PredictedFigure]:
    """Step time, MFU and peak memory, as far as both are known."""
    kept = history.prediction
    if kept is None:
        return []
    found = []
    measured = measured_step_s(history, tokens=kept.tokens)
    if measured is not None:
        found.append(PredictedFigure("step time", kept.step_s, measured, kept.low_s <= measured <= kept.high_s))
        mfu = history.metrics.get("mfu")
        if kept.mfu is not None and mfu is not None:
            found.append(PredictedFigure("MFU", kept.mfu, float(np.median(mfu.recent))))
    peak = history.last("peak_memory_bytes")
    if kept.peak_bytes is not None and peak is not None:
        found.append(PredictedFigure("peak memory", kept.peak_bytes, peak))
    return found


def _number(value: object) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if good else None  # type: ignore[arg-type]

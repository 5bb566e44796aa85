"""Calibration of scores: a temperature or an isotonic map for each category, and the expected calibration error.

A calibrator maps probabilities (n,) to probabilities (n,) and never reverses an order. It is fitted on labelled texts
that did not train the classifier. Everything is float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt.errors import ConfigError
from gpt.moderation.measures.ranking import Floats, known

Kind = Literal["temperature", "isotonic"]
KINDS: tuple[Kind, ...] = ("temperature", "isotonic")
MAX_TEMPERATURE = 1e3
_EDGE = 1e-15  # probabilities of exactly 0 and 1 have no finite logit
_STEPS = 200  # bisections of the logarithm of the temperature


@dataclass(frozen=True)
class Temperature:
    """p -> sigmoid(logit(p) / temperature) (Guo and others, 2017)."""

    temperature: float


@dataclass(frozen=True)
class Isotonic:
    """Non-decreasing map, linear between its points and constant outside (Zadrozny and Elkan, 2002)."""

    x: tuple[float, ...]
    y: tuple[float, ...]


Calibrator = Temperature | Isotonic


def calibrated(scores: ArrayLike, calibrator: Calibrator) -> Floats:
    """Return calibrated probabilities, the shape of `scores`."""
    values = np.asarray(scores, dtype=np.float64)
    if isinstance(calibrator, Isotonic):
        return np.interp(values, calibrator.x, calibrator.y)
    return _sigmoid(_logit(values) / calibrator.temperature)


def parents_at_least_children(scores: Floats, parents: Sequence[int]) -> Floats:
    """Scores (n, c) in which each category has at least those of its children. `parents` (c,): positions, or -1."""
    found = scores.copy()
    for child in range(len(parents)):
        above = parents[child]
        while above >= 0:  # all ancestors, so the order does not matter
            found[:, above] = np.maximum(found[:, above], scores[:, child])
            above = parents[above]
    return found


def fit(kind: Kind, labels: ArrayLike, scores: ArrayLike) -> Calibrator:
    """Fit a calibrator of this kind. ValueError: as its own function."""
    return fit_temperature(labels, scores) if kind == "temperature" else fit_isotonic(labels, scores)


def fit_temperature(labels: ArrayLike, scores: ArrayLike) -> Temperature:
    """Return the temperature with the least log loss, from 1 / MAX_TEMPERATURE to MAX_TEMPERATURE.

    The loss is convex in 1 / temperature, so bisection of its derivative finds the one minimum. ValueError: only one
    class is known, or as `known`.
    """
    label, score, _ = _both_classes(labels, scores)
    logit = _logit(score)

    def slope(log_temperature: float) -> float:
        return float((_sigmoid(logit * math.exp(-log_temperature)) - label) @ logit)

    low, high = -math.log(MAX_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return Temperature(math.exp((low + high) / 2))


def fit_isotonic(labels: ArrayLike, scores: ArrayLike) -> Isotonic:
    """Return the non-decreasing map with the least squared error, by pooling adjacent violators.

    Equal scores share one value. Points inside a constant piece are left out. ValueError: as `fit_temperature`.
    """
    label, score, _ = _both_classes(labels, scores)
    x, where, counts = np.unique(score, return_inverse=True, return_counts=True)
    y = pool_adjacent_violators(np.bincount(where, label) / counts, counts.astype(np.float64))
    inner = np.zeros(len(x), dtype=bool)
    inner[1:-1] = (y[1:-1] == y[:-2]) & (y[1:-1] == y[2:])
    return Isotonic(tuple(map(float, x[~inner])), tuple(map(float, y[~inner])))


def pool_adjacent_violators(values: Floats, weights: Floats) -> Floats:
    """Return the non-decreasing values (n,) with the least weighted squared distance from `values` (n,)."""
    sums: list[float] = []
    totals: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        total, mass, length = value * weight, weight, 1
        while sums and sums[-1] * mass >= total * totals[-1]:  # the block before has no smaller mean
            total, mass, length = total + sums.pop(), mass + totals.pop(), length + lengths.pop()
        sums.append(total)
        totals.append(mass)
        lengths.append(length)
    return np.repeat(np.array(sums) / np.array(totals), lengths)


def calibration_bins(labels: ArrayLike, scores: ArrayLike, *, bins: int = 15) -> list[dict[str, float]]:
    """Return the mean score and the share of positives in equal intervals of the score; empty ones are left out.

    An interval includes its upper bound, and the first one 0. ValueError: as `known`, or a score is no probability.
    """
    label, score, _ = known(labels, scores)
    if len(score) and (score.min() < 0 or score.max() > 1):
        raise ValueError("a score is not a probability")
    edges = np.linspace(0, 1, bins + 1)
    index = np.searchsorted(edges[1:-1], score)
    found = []
    for i in np.unique(index):
        chosen = index == i
        found.append(
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "texts": int(chosen.sum()),
                "mean_score": float(score[chosen].mean()),
                "positive_share": float(label[chosen].mean()),
            }
        )
    return found


def expected_calibration_error(labels: ArrayLike, scores: ArrayLike, *, bins: int = 15) -> float:
    """Mean distance of score and share of positives over the bins, weighted by texts. NaN without a known label."""
    found = calibration_bins(labels, scores, bins=bins)
    total = sum(one["texts"] for one in found)
    errors = sum(one["texts"] * abs(one["mean_score"] - one["positive_share"]) for one in found)
    return errors / total if total else math.nan


# JSON


def calibrator_json(calibrator: Calibrator) -> dict[str, Any]:
    if isinstance(calibrator, Temperature):
        return {"kind": "temperature", "temperature": calibrator.temperature}
    return {"kind": "isotonic", "x": list(calibrator.x), "y": list(calibrator.y)}


def read_calibrator(value: Any, *, where: str) -> Calibrator:
    """Return the calibrator of a parsed JSON value.

    ConfigError: the value is something else, or it would reverse an order of scores.
    """
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "temperature":
        temperature = value.get("temperature")
        if not _is_number(temperature) or not 0 < temperature < math.inf:
            raise ConfigError(
                f"{where}: temperature must be a positive number. Run `triaxial moderate calibrate` again."
            )
        return Temperature(float(temperature))
    if kind == "isotonic":
        x, y = value.get("x"), value.get("y")
        if _is_rising(x) and _is_rising(y) and len(x) == len(y) and len(set(x)) == len(x) and 0 <= y[0] <= y[-1] <= 1:
            return Isotonic(tuple(map(float, x)), tuple(map(float, y)))
        raise ConfigError(
            f"{where}: x must rise; y, of equal length, must not fall and must lie in 0 to 1. "
            "Run `triaxial moderate calibrate` again."
        )
    raise ConfigError(f"{where}: kind must be 'temperature' or 'isotonic'. Run `triaxial moderate calibrate` again.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rising(values: Any) -> bool:
    if not isinstance(values, list) or not values or not all(map(_is_number, values)):
        return False
    return all(a <= b for a, b in pairwise(values))


def _both_classes(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats, Floats]:
    label, score, weight = known(labels, scores)
    if not 0 < label.sum() < len(label):
        only = "no label is known" if not len(label) else f"all known labels are {int(label[0])}"
        raise ValueError(f"{only}; both classes are needed")
    return label, score, weight


def _logit(p: Floats) -> Floats:
    clipped = np.clip(p, _EDGE, 1 - _EDGE)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(x: NDArray[np.float64]) -> Floats:
    tail = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + tail), tail / (1 + tail))

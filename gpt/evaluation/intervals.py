"""Confidence intervals: Wilson's of a proportion, a bootstrap over groups such as prompts, and both as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


def interval_text(interval: Interval, *, percent: bool = True) -> str:
    """An estimate with its bounds, in percent or as a number."""
    if interval.estimate != interval.estimate:
        return "no data"

    def text(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.4g}"

    if interval.low != interval.low:
        return text(interval.estimate)
    return f"{text(interval.estimate)} ({text(interval.low)} to {text(interval.high)})"


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval (1927) of a proportion; `n` independent trials. 0 trials give 0 to 1."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_interval(
    groups: Sequence[Sequence[float]], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of all values, with a percentile bootstrap that draws whole groups.

    Values of one group, such as several votes on one prompt, need not be independent. With fewer than two groups the
    bounds are NaN.
    """
    kept = [group for group in groups if group]
    sums, counts = np.array([sum(group) for group in kept]), np.array([len(group) for group in kept])
    if not kept:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(sums.sum() / counts.sum())
    if len(kept) < 2:
        return Interval(mean, math.nan, math.nan)
    return Interval(mean, *bootstrap_bounds(sums, counts, confidence=confidence, resamples=resamples, seed=seed))


def bootstrap_bounds(
    sums: NDArray[Any], counts: NDArray[Any], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The bounds of `bootstrap_interval`, from the sum of each group's values and their number, both (groups,)."""
    rng, means = np.random.default_rng(seed), np.empty(resamples)
    for i in range(resamples):  # one draw at a time, so that memory is that of the groups
        drawn = rng.integers(len(sums), size=len(sums))
        means[i] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)

"""Confidence intervals of measures: bootstrap over texts, and exact intervals for rare classes."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from gpt.evaluation.intervals import Interval
from gpt.moderation.measures.ranking import Floats, known

RESAMPLES = 1_000
# With fewer positives, a bootstrap covers less than it says: use exact intervals of precision and recall.
MIN_BOOTSTRAP_POSITIVES = 10
_STEPS = 60  # bisections of the unit interval, down to the resolution of float64

Measure = Callable[[Floats, Floats, Floats], float]  # labels, scores, weights, all (n,)


def measure_interval(
    measure: Measure,
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A measure such as `average_precision`, with a percentile bootstrap over the texts whose label is known.

    Resamples for which the measure is undefined, for example without a positive, do not count. The bounds are NaN if
    no resample defines it. ValueError: as `known`.
    """
    label, score, ones = known(labels, scores)
    if not len(label):
        return Interval(math.nan, math.nan, math.nan)
    order = np.argsort(-score, kind="stable")  # sorted input makes the sort of every resample cheap
    label, score = label[order], score[order]
    values = np.array([measure(label, score, weights) for weights in _weights(len(label), resamples, seed)])
    return Interval(measure(label, score, ones), *_bounds(values, confidence))


def difference_interval(
    measure: Measure,
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """How much the measure of `second` exceeds that of `first`, on the same texts; a paired bootstrap.

    Both scores are (n,), for example of two versions of a classifier.
    """
    label, a, ones = known(labels, first)
    _, b, _ = known(labels, second)
    if not len(label):
        return Interval(math.nan, math.nan, math.nan)

    def difference(weights: Floats) -> float:
        return measure(label, b, weights) - measure(label, a, weights)

    values = np.array([difference(weights) for weights in _weights(len(label), resamples, seed)])
    return Interval(difference(ones), *_bounds(values, confidence))


def exact_interval(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's interval (1934) of a proportion: it covers at least `confidence` for every n.

    0 trials give 0 to 1 and an estimate of NaN. ValueError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _bisect(lambda p: _upper_tail(successes, n, p) < tail)
    # P(X <= successes) = P(n - X >= n - successes), which keeps small probabilities exact
    high = 1.0 if successes == n else _bisect(lambda p: _upper_tail(n - successes, n, 1 - p) > tail)
    return Interval(successes / n, low, high)


def exact_low_reaches(successes: int, n: int, wanted: float, *, confidence: float = 0.95) -> bool:
    """Return whether the lower bound of `exact_interval` is at least `wanted`, without a search for the bound."""
    return successes > 0 and _upper_tail(successes, n, wanted) <= (1 - confidence) / 2


def _upper_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) of a binomial. Terms are relative to that of the mode, so no factorial of a large n loses digits."""
    if p <= 0 or p >= 1 or k <= 0 or k > n:
        return float(k <= 0 or (p >= 1 and k <= n))
    mode = min(int((n + 1) * p), n)
    half = int(12 * math.sqrt(n * p * (1 - p))) + 60  # terms further out are below 1e-25 of the sum
    first, last = max(0, mode - half), min(n, mode + half)
    up, down = np.arange(mode, last), np.arange(mode, first, -1)
    log_odds = math.log(p) - math.log1p(-p)
    above = np.cumsum(np.log((n - up) / (up + 1)) + log_odds)
    below = np.cumsum(np.log(down / (n - down + 1)) - log_odds)
    terms = np.exp(np.concatenate([below[::-1], [0.0], above]))  # of first ... last
    start = min(max(k - first, 0), len(terms))
    return float(terms[start:].sum() / terms.sum())


def _bisect(is_below: Callable[[float], bool]) -> float:
    """The p in (0, 1) where a monotone rule turns from true to false."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def _weights(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each text is in each resample, one at a time: all of 100,000 texts would need 800 MB."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)


def _bounds(values: Floats, confidence: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)

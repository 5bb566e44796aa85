"""Metrics of a policy's training over its iterations: smoothing, starting values, spans outside a band."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 5  # iterations of a running median, and of the starting value
MIN_WINDOW = 3  # values that a running median needs
MIN_SPAN = 3  # iterations outside a band before it counts

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class IterationSeries:
    """The finite values of one metric in order of iterations."""

    iterations: NDArray[np.int64]  # (n,), ascending
    values: Values  # (n,)

    @property
    def start(self) -> float:
        """The median of the first WINDOW values."""
        return float(np.median(self.values[:WINDOW]))

    @property
    def recent(self) -> float:
        """The median of the last WINDOW values."""
        return float(np.median(self.values[-WINDOW:]))

    def smooth(self) -> Values:
        """The median of each value and the WINDOW - 1 before it, (n,). NaN where there are fewer than MIN_WINDOW."""
        n = len(self.values)
        medians = np.full(n, np.nan)
        for i in range(MIN_WINDOW - 1, n):
            medians[i] = np.median(self.values[max(0, i + 1 - WINDOW) : i + 1])
        return medians


PolicyMetrics = Mapping[str, IterationSeries]  # by name, without the prefix of the objective


@dataclass(frozen=True)
class Span:
    """Iterations from `first` to `last`. `lasting`: the newest iteration is in it."""

    first: int
    last: int
    lasting: bool


def span_outside(
    series: IterationSeries, broken: Callable[[Values], Flags], *, after: int = 0, least: int = MIN_SPAN
) -> Span | None:
    """The newest span in which the running median is outside a band. None if no span has `least` values.

    `broken` marks the values outside. The first `after` values do not count. The span begins where the values
    themselves left the band, because a running median is late.
    """
    with np.errstate(invalid="ignore"):
        return newest_span(series, broken(series.smooth()), broken(series.values), after=after, least=least)


def newest_span(
    series: IterationSeries, late: Flags, raw: Flags, *, after: int = 0, least: int = MIN_SPAN
) -> Span | None:
    """As `span_outside`, from the flags of the running median and of the values, (n,) each."""
    flagged = [int(i) for i in np.flatnonzero(late) if i >= after]
    spans: list[list[int]] = []
    for i in flagged:
        if spans and i - spans[-1][1] <= WINDOW:  # a short return into the band does not end a span
            spans[-1][1] = i
        else:
            spans.append([i, i])
    for first, last in reversed(spans):
        earliest = max(after, first - WINDOW + 1)
        while first > earliest and raw[first - 1]:
            first -= 1
        if last - first + 1 >= least:
            iterations = series.iterations
            return Span(int(iterations[first]), int(iterations[last]), last == len(iterations) - 1)
    return None


def aligned(*series: IterationSeries) -> tuple[NDArray[np.int64], list[Values]]:
    """The iterations at which all series have a value, and their values there."""
    common = series[0].iterations
    for one in series[1:]:
        common = np.intersect1d(common, one.iterations)
    return common, [one.values[np.searchsorted(one.iterations, common)] for one in series]


def running_mean(values: Values, width: int) -> Values:
    """The mean of the values at most `width` // 2 away, (n,); fewer at both ends."""
    total, half = np.concatenate([[0.0], np.cumsum(values)]), width // 2
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))

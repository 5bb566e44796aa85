"""The values of one metric over the steps of a run. Long series are thinned: memory does not grow with a run."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RECENT = 100  # speeds and losses are medians over this many logged steps
MAX_POINTS = 8192  # of a thinned series; a plot has about 500 columns

Steps = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """The finite values of one metric, in order of steps.

    In a thinned series each point stands for several logged values: its step is that of the first, its value their
    mean, and `low` and `high` are the smallest and the largest. `newest` then has the last RECENT values as logged.
    """

    steps: Steps  # (n,)
    values: Values  # (n,)
    low: Values | None = None  # (n,)
    high: Values | None = None  # (n,)
    newest: "Series | None" = None

    @property
    def extremes(self) -> tuple[Values, Values]:
        """The smallest and the largest value of each point, (n,) each."""
        if self.low is None or self.high is None:
            return self.values, self.values
        return self.low, self.high

    @property
    def recent(self) -> Values:
        """The last values as logged, at most RECENT."""
        return (self.newest or self).values[-RECENT:]

    @property
    def last_step(self) -> int:
        return int((self.newest or self).steps[-1])

    def part(self, chosen: NDArray[np.bool_] | slice) -> "Series":
        """The chosen points, without `newest`."""
        low, high = (None if bound is None else bound[chosen] for bound in (self.low, self.high))
        return Series(self.steps[chosen], self.values[chosen], low, high)

    def where(self, wanted: Callable[[Steps], NDArray[np.bool_]]) -> "Series | None":
        """The points at the wanted steps, None if there is none."""
        chosen = wanted(self.steps)
        if chosen.all():
            return self
        newest = self.newest.where(wanted) if self.newest is not None else None
        found = self.part(chosen)
        return Series(found.steps, found.values, found.low, found.high, newest) if chosen.any() else None

    def scaled(self, factor: float) -> "Series":
        """Every value times a positive factor."""
        low, high = (None if bound is None else bound * factor for bound in (self.low, self.high))
        return Series(self.steps, self.values * factor, low, high)


Take = dict[str, Series]  # by the metric's name


@dataclass
class GrowingSeries:
    """A series while its file is read. `add` is two appends, so the reader does them itself; then it calls `thin`."""

    steps: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    _points: Series | None = None  # what has been thinned
    _counts: Steps = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # logged values of each point
    _per_point: int = 1

    def thin(self) -> None:
        """Thin the values appended so far if they are many. Call it at least every MAX_POINTS values."""
        if len(self.values) < 2 * MAX_POINTS:
            return
        n = (len(self.values) - RECENT) // self._per_point * self._per_point
        points, self._counts = self._folded(n)
        del self.steps[:n], self.values[:n]
        while len(self._counts) > MAX_POINTS:
            points, self._counts = _merged(points, self._counts, 2)
            self._per_point *= 2
        self._points = points

    def series(self) -> Series:
        """The series so far."""
        logged = Series(np.array(self.steps, dtype=np.int64), np.array(self.values, dtype=np.float64))
        if self._points is None:
            return logged
        points, _ = self._folded(len(self.values))
        return Series(points.steps, points.values, points.low, points.high, logged.part(slice(-RECENT, None)))

    def _folded(self, n: int) -> tuple[Series, Steps]:
        """The points with the first n values added to them, `_per_point` values to a point."""
        steps, values = np.array(self.steps[:n], dtype=np.int64), np.array(self.values[:n], dtype=np.float64)
        new, counts = _merged(Series(steps, values), np.ones(n, dtype=np.int64), self._per_point)
        points = new if self._points is None else joined([self._points, new])
        return points, np.concatenate([self._counts, counts])


def thinned(series: Series, most: int) -> Series:
    """The series in at most `most` points, each of equally many."""
    n = len(series.steps)
    if n <= most:
        return series
    return _merged(series, np.ones(n, dtype=np.int64), -(-n // most))[0]


def _merged(series: Series, counts: Steps, n: int) -> tuple[Series, Steps]:
    """Merge every n points, the last one perhaps of fewer."""
    starts = np.arange(0, len(counts), n)
    low, high = series.extremes
    total = np.add.reduceat(counts, starts)
    mean = np.add.reduceat(series.values * counts, starts) / total
    merged = Series(series.steps[starts], mean, np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts))
    return merged, total


def joined(parts: Sequence[Series]) -> Series:
    """Join several series into one, in order of steps."""
    steps, values = (np.concatenate([getattr(part, name) for part in parts]) for name in ("steps", "values"))
    if all(part.low is None for part in parts):
        return Series(steps, values)
    low, high = (np.concatenate([part.extremes[side] for part in parts]) for side in (0, 1))
    return Series(steps, values, low, high, parts[-1].newest or parts[-1].part(slice(-RECENT, None)))


def settle(takes: Sequence[Take]) -> tuple[Take, list[Take]]:
    """Join several takes: keep the last take of each step. Return the joined take, and what was superseded."""
    kept: list[Take] = []
    lost: list[Take] = []
    limit = 2**62
    for take in reversed(takes):
        before, past = _split(take, limit)
        kept.insert(0, before)
        if past:
            lost.insert(0, past)
        limit = min([limit, *(int(series.steps[0]) for series in take.values())])
    names = dict.fromkeys(name for take in kept for name in take)
    return {name: joined([take[name] for take in kept if name in take]) for name in names}, lost


def _split(take: Take, limit: int) -> tuple[Take, Take]:
    """The points before a step, and the others."""
    before = {name: part for name, series in take.items() if (part := series.where(lambda steps: steps < limit))}
    past = {name: part for name, series in take.items() if (part := series.where(lambda steps: steps >= limit))}
    return before, past


def runs_without_gaps(series: Series) -> list[Series]:
    """Split a series wherever a gap is more than ten times the median distance between steps."""
    gaps = np.diff(series.steps)
    if not gaps.size:
        return [series]
    cuts = (np.flatnonzero(gaps > 10 * np.median(gaps)) + 1).tolist()
    return [series.part(slice(start, stop)) for start, stop in zip([0, *cuts], [*cuts, None], strict=True)]

"""Times between measured points: smooth in the logarithms of sizes, at the nearest speed beyond them."""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence


class TimeCurve:
    """Seconds by one size, interpolated in both logarithms.

    Below the first point the time is that of the first, which is latency; above the last it grows with the size.
    """

    def __init__(self, points: Mapping[float, float]) -> None:
        assert points, "a curve needs a point"
        self.sizes = sorted(points)
        self.seconds = [points[size] for size in self.sizes]

    def __call__(self, size: float) -> float:
        if size <= 0:
            return 0.0
        if size <= self.sizes[0]:
            return self.seconds[0]
        if size >= self.sizes[-1]:
            return self.seconds[-1] * size / self.sizes[-1]
        right = bisect.bisect_right(self.sizes, size)
        low, high = self.sizes[right - 1], self.sizes[right]
        share = math.log(size / low) / math.log(high / low)
        return math.exp((1 - share) * math.log(self.seconds[right - 1]) + share * math.log(self.seconds[right]))


class SpeedGrid:
    """Speeds on a grid of sizes, interpolated in all logarithms. A size beyond the grid has the speed at its edge.

    A grid point without a measurement, because it would take too long, has the mean speed of its measured neighbours
    with one smaller size.
    """

    def __init__(self, speeds: Mapping[tuple[int, ...], float]) -> None:
        assert speeds, "a grid needs a point"
        count = len(next(iter(speeds)))
        self.axes: list[list[int]] = [sorted({point[i] for point in speeds}) for i in range(count)]
        self.logs: dict[tuple[int, ...], float] = {}
        for index in itertools.product(*(range(len(axis)) for axis in self.axes)):
            point = tuple(axis[i] for axis, i in zip(self.axes, index, strict=True))
            if point in speeds:
                self.logs[index] = math.log(speeds[point])
                continue
            smaller = [(*index[:i], index[i] - 1, *index[i + 1 :]) for i in range(count) if index[i] > 0]
            known = [self.logs[each] for each in smaller]
            self.logs[index] = sum(known) / len(known) if known else math.log(max(speeds.values()))

    def __call__(self, *sizes: float) -> float:
        corners: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        for axis, size in zip(self.axes, sizes, strict=True):
            left, share = _position(axis, size)
            corners = [
                ((*index, left + step), weight * part)
                for index, weight in corners
                for step, part in ((0, 1 - share), (1, share))
                if part > 0
            ]
        return math.exp(sum(weight * self.logs[index] for index, weight in corners))


def _position(axis: Sequence[int], size: float) -> tuple[int, float]:
    """The index of the point on the left, and the share of the way to the next one."""
    if size <= axis[0] or len(axis) == 1:
        return 0, 0.0
    if size >= axis[-1]:
        return len(axis) - 1, 0.0
    right = bisect.bisect_right(axis, size)
    return right - 1, math.log(size / axis[right - 1]) / math.log(axis[right] / axis[right - 1])

"""Draws the plots of a run's page as SVG text, with no library and no script; knows nothing of runs.

A line of more points than the plot has columns is drawn as its mean in each column, inside a band from the least to the
greatest, so that a spike of one step in a million is seen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from launch.runs.history import Series

WIDTH, HEIGHT = 560, 210
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 8, 24
COLUMNS = WIDTH - LEFT - RIGHT
LOG_FROM = 30.0  # an axis whose values, all above 0, span more than this ratio is logarithmic


@dataclass(frozen=True)
class Line:
    """One curve; `colour` and `kind` are CSS classes of the page. `dots` also marks its points, where they are few."""

    name: str
    series: Series
    colour: str
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at a step; `title` is what hovering over it tells."""

    step: int
    kind: str
    title: str


@dataclass(frozen=True)
class Axis:
    """Values to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        scaled = np.log(np.maximum(values, self.low)) if self.log else values
        return self.start + (scaled - low) / (high - low) * (self.end - self.start)

    def place_one(self, value: float) -> float:
        return float(self.place(np.array([float(value)]))[0])


def draw(
    lines: Sequence[Line],
    *,
    marks: Sequence[Mark],
    steps: tuple[int, int],
    label: str,
    number: Callable[[float], str],
    from_zero: bool = False,
) -> str:
    """One plot over the steps from first to last. `number` writes the axis's values; `from_zero` begins it at 0."""
    x = Axis(steps[0], max(steps[1], steps[0] + 1), LEFT, WIDTH - RIGHT)
    y = value_axis([line.series.values for line in lines], from_zero=from_zero)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        *_grid(x, y, number),
        *(_mark(x, group) for group in merged(x, marks)),
        *(_curve(x, y, line) for line in lines),
        "</svg>",
    ]
    return "".join(parts)


def value_axis(values: Sequence[NDArray[np.float64]], *, from_zero: bool) -> Axis:
    """From the least to the greatest value with a little room, logarithmic where they differ by orders."""
    all_values = np.concatenate([*values, np.zeros(0)])
    low, high = (float(all_values.min()), float(all_values.max())) if all_values.size else (0.0, 1.0)
    if low > 0 and high / low > LOG_FROM and not from_zero:
        return Axis(low / 1.15, high * 1.15, HEIGHT - BOTTOM, TOP, log=True)
    if from_zero:
        low = min(low, 0.0)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return Axis(low if from_zero and low == 0 else low - room, high + room, HEIGHT - BOTTOM, TOP)


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """Round numbers between two values: steps of 1, 2 or 5 times a power of ten, `most` at the utmost."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Powers of ten, with 2 and 5 times them while there is room, every so many where there is none."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**e for e in range(first, last + 1) for m in multiples if low <= m * 10.0**e <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def merged(x: Axis, marks: Sequence[Mark]) -> list[list[Mark]]:
    """Marks of one kind that fall on one column of the picture are one."""
    groups: dict[tuple[str, int], list[Mark]] = {}
    for mark in marks:
        if x.low <= mark.step <= x.high:
            groups.setdefault((mark.kind, round(x.place_one(mark.step))), []).append(mark)
    return list(groups.values())


def _grid(x: Axis, y: Axis, number: Callable[[float], str]) -> list[str]:
    parts = []
    for value in log_ticks(y.low, y.high, most=6) if y.log else ticks(y.low, y.high, most=7):
        at = y.place_one(value)
        parts.append(f'<path class=grid d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{escape(number(value))}</text>')
    parts.append(f'<path class=axis d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    for value in ticks(x.low, x.high, most=6):
        if value == int(value):
            at = x.place_one(value)
            parts.append(f'<path class=axis d="M{at:.1f} {HEIGHT - BOTTOM}v4"/>')
            text = f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{int(value):,}</text>'
            parts.append(text)
    return parts


def _mark(x: Axis, group: Sequence[Mark]) -> str:
    at = x.place_one(group[0].step)
    told = [mark.title for mark in group[:8]]
    if len(group) > 8:
        told.append(f"and {len(group) - 8:,} more")
    where = f"M{at:.1f} {HEIGHT - BOTTOM}v-7" if group[0].kind == "checkpoint" else f"M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"
    return f'<path class="mark {escape(group[0].kind)}" d="{where}"><title>{escape(chr(10).join(told))}</title></path>'


def _curve(x: Axis, y: Axis, line: Line) -> str:
    steps, values = line.series.steps, line.series.values
    band = ""
    if len(values) > 2 * COLUMNS:
        column = np.minimum((x.place(steps.astype(np.float64)) - LEFT).astype(np.int64), COLUMNS - 1)
        starts = np.flatnonzero(np.diff(column, prepend=-1))
        counts = np.diff(starts, append=len(values))
        at = LEFT + column[starts] + 0.5
        least, greatest = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        values = np.add.reduceat(values, starts) / counts
        edge = _path(at, y.place(greatest)) + "L" + _path(at[::-1], y.place(least)[::-1])[1:]
        band = f'<path class="band {line.colour}" d="{edge}Z"/>'
    else:
        at = x.place(steps.astype(np.float64))
    heights = y.place(values)
    curve = f'<path class="line {line.colour}" d="{_path(at, heights)}"><title>{escape(line.name)}</title></path>'
    dots = ""
    if (line.dots and len(values) <= 60) or len(values) == 1:
        dots = "".join(
            f'<circle class="dot {line.colour}" cx="{cx:.1f}" cy="{cy:.1f}" r="2.4"><title>{escape(line.name)}, step '
            f"{step:,}: {value:.5g}</title></circle>"
            for cx, cy, step, value in zip(at, heights, steps, values, strict=False)
        )
    return band + curve + dots


def _path(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))

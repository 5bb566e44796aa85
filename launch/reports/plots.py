"""Draw the plots of a run's page: metrics over steps, with marks for events, as SVG text.

A line with more points than the plot has columns is drawn as its mean in each column, inside a band from the minimum to
the maximum. A spike of one step in a million therefore stays visible.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from launch.reports.axes import Axis, bottom_axis, horizontal_grid, log_ticks, svg_path, ticks
from launch.runs.series import Series

WIDTH, HEIGHT = 560, 210
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 8, 24
COLUMNS = WIDTH - LEFT - RIGHT
LOG_FROM = 30.0  # an axis of positive values is logarithmic if they span more than this ratio
MAX_DOTS = 60
MAX_TITLES = 8  # of the marks that share a column


@dataclass(frozen=True)
class PlotLine:
    """One curve; `colour` is a CSS class of the page. `dots` also draws its points, if they are few."""

    name: str
    series: Series
    colour: str
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at a step; `title` appears when the mouse is over it."""

    step: int
    kind: str
    title: str


def draw(
    lines: Sequence[PlotLine],
    *,
    marks: Sequence[Mark],
    steps: tuple[int, int],
    label: str,
    number: Callable[[float], str],
    from_zero: bool = False,
    healthy: tuple[float | None, float | None] = (None, None),
) -> str:
    """One plot over the steps from first to last. `number` formats tick values; `from_zero` starts the axis at 0.

    Values between the bounds of `healthy` have a coloured background. None: no bound.
    """
    x = Axis(steps[0], max(steps[1], steps[0] + 1), LEFT, WIDTH - RIGHT)
    values = [bound for line in lines for bound in line.series.extremes]
    if all(np.ptp(value) == 0 for value in values):  # a constant gives no scale, but its band may
        values.append(np.array([bound for bound in healthy if bound is not None]))
    y = value_axis(values, from_zero=from_zero)
    step_ticks = [value for value in ticks(x.low, x.high, most=6) if value == int(value)]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        _healthy(x, y, *healthy),
        *horizontal_grid(x, y, log_ticks(y.low, y.high, most=6) if y.log else ticks(y.low, y.high, most=7), number),
        *bottom_axis(x, y, step_ticks, lambda step: f"{int(step):,}"),
        *(_mark(x, group) for group in merged(x, marks)),
        *(_curve(x, y, line) for line in lines),
        "</svg>",
    ]
    return "".join(parts)


def figure(
    title: str,
    lines: Sequence[PlotLine],
    *,
    marks: Sequence[Mark],
    steps: tuple[int, int],
    number: Callable[[float], str],
    from_zero: bool,
    healthy: tuple[float | None, float | None] = (None, None),
    note: str = "",
) -> str:
    """A plot with its title, and a key if it has several lines. `note`: plain text after the title."""
    named = {line.name: line.colour for line in lines if line.colour != "lost"}
    keys = "".join(f"<span class=key><i class={colour}></i>{escape(name)}</span>" for name, colour in named.items())
    keys = (keys if len(named) > 1 else "") + (f"<span class=key>{escape(note)}</span>" if note else "")
    picture = draw(lines, marks=marks, steps=steps, label=title, number=number, from_zero=from_zero, healthy=healthy)
    return f"<figure><figcaption><h3>{escape(title)}</h3>{keys}</figcaption>{picture}</figure>"


def _healthy(x: Axis, y: Axis, low: float | None, high: float | None) -> str:
    """The background of the healthy values, as far as the plot shows them."""
    if low is None and high is None:
        return ""
    bottom, top = y.low if low is None else max(low, y.low), y.high if high is None else min(high, y.high)
    if bottom >= top:
        return ""
    above, below = y.pixel(top), y.pixel(bottom)
    size = f'x="{x.start:g}" y="{above:.1f}" width="{x.end - x.start:g}" height="{below - above:.1f}"'
    return f'<rect class="healthy" {size}/>'


def value_axis(values: Sequence[NDArray[np.float64]], *, from_zero: bool) -> Axis:
    """From minimum to maximum with some margin; logarithmic if the values span orders of magnitude."""
    all_values = np.concatenate([*values, np.zeros(0)])
    low, high = (float(all_values.min()), float(all_values.max())) if all_values.size else (0.0, 1.0)
    if low > 0 and high / low > LOG_FROM and not from_zero:
        return Axis(low / 1.15, high * 1.15, HEIGHT - BOTTOM, TOP, log=True)
    if from_zero:
        low = min(low, 0.0)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return Axis(low if from_zero and low == 0 else low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def merged(x: Axis, marks: Sequence[Mark]) -> list[list[Mark]]:
    """Group the marks of one kind that fall into the same pixel column."""
    groups: dict[tuple[str, int], list[Mark]] = {}
    for mark in marks:
        if x.low <= mark.step <= x.high:
            groups.setdefault((mark.kind, round(x.pixel(mark.step))), []).append(mark)
    return list(groups.values())


def _mark(x: Axis, group: Sequence[Mark]) -> str:
    at = x.pixel(group[0].step)
    titles = [mark.title for mark in group[:MAX_TITLES]]
    if len(group) > MAX_TITLES:
        titles.append(f"and {len(group) - MAX_TITLES:,} more")
    floor = HEIGHT - BOTTOM
    path = f"M{at:.1f} {floor}v-7" if group[0].kind == "checkpoint" else f"M{at:.1f} {TOP}V{floor}"
    return f'<path class="mark {escape(group[0].kind)}" d="{path}"><title>{escape(chr(10).join(titles))}</title></path>'


def _curve(x: Axis, y: Axis, line: PlotLine) -> str:
    steps, values = line.series.steps, line.series.values
    band = ""
    if len(values) > 2 * COLUMNS:
        column = np.minimum((x.pixels(steps.astype(np.float64)) - LEFT).astype(np.int64), COLUMNS - 1)
        starts = np.flatnonzero(np.diff(column, prepend=-1))
        counts = np.diff(starts, append=len(values))
        at = LEFT + column[starts] + 0.5
        low, high = line.series.extremes
        lowest, highest = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
        values = np.add.reduceat(values, starts) / counts
        edge = svg_path(at, y.pixels(highest)) + "L" + svg_path(at[::-1], y.pixels(lowest)[::-1])[1:]
        band = f'<path class="band {line.colour}" d="{edge}Z"/>'
    else:
        at = x.pixels(steps.astype(np.float64))
    heights = y.pixels(values)
    curve = f'<path class="line {line.colour}" d="{svg_path(at, heights)}"><title>{escape(line.name)}</title></path>'
    dots = ""
    if (line.dots and len(values) <= MAX_DOTS) or len(values) == 1:
        dots = "".join(
            f'<circle class="dot {line.colour}" cx="{cx:.1f}" cy="{cy:.1f}" r="2.4"><title>{escape(line.name)}, step '
            f"{step:,}: {value:.5g}</title></circle>"
            for cx, cy, step, value in zip(at, heights, steps, values, strict=False)
        )
    return band + curve + dots

"""A scatter plot as SVG text: one point a layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gpt.telemetry.screen import human_count
from launch.reports.axes import Axis, bottom_axis, horizontal_grid, log_ticks, ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 230, 64, 26, 10, 26


@dataclass(frozen=True)
class PlanPoint:
    """A layout in a plot; its `name` appears under the mouse. `best` marks it."""

    x: float
    y: float
    name: str
    best: bool = False


def scatter(
    points: Sequence[PlanPoint], *, label: str, limit: float | None = None, joined: bool = False, log: bool = False
) -> str:
    """The plot. `limit`: a vertical line on the x axis. `joined`: a line through the points. `log`: both axes."""
    x = _axis([p.x for p in points] + ([limit] if limit is not None else []), LEFT, WIDTH - RIGHT, log=log)
    y = _axis([p.y for p in points], HEIGHT - BOTTOM, TOP, log=log)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        *horizontal_grid(x, y, _ticks(y), _number),
        *bottom_axis(x, y, _ticks(x), _number),
    ]
    if limit is not None:
        at = x.pixel(limit)
        parts.append(f'<path class="mark fault" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"><title>usable</title></path>')
    if joined:
        way = "L".join(f"{x.pixel(p.x):.1f} {y.pixel(p.y):.1f}" for p in points)
        parts.append(f'<path class="line s0" d="M{way}"/>')
    for p in points:
        colour, size = ("s1", 5) if p.best else ("s0", 3.5)
        parts.append(
            f'<circle class="dot {colour}" cx="{x.pixel(p.x):.1f}" cy="{y.pixel(p.y):.1f}" r="{size}">'
            f"<title>{escape(p.name)}: {_number(p.x)}, {_number(p.y)}</title></circle>"
        )
    return "".join([*parts, "</svg>"])


def _axis(values: Sequence[float], begin: float, end: float, *, log: bool) -> Axis:
    low, high = min(values), max(values)
    if log:
        return Axis(low / 1.2, high * 1.2, begin, end, log=True)
    margin = 0.08 * (high - low) or 0.08 * high or 1.0
    return Axis(max(0.0, low - margin), high + margin, begin, end)


def _ticks(axis: Axis) -> list[float]:
    return log_ticks(axis.low, axis.high, most=6) if axis.log else ticks(axis.low, axis.high, most=6)


def _number(value: float) -> str:
    return human_count(value) if value >= 10_000 else f"{value:.4g}"

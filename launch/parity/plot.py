"""Draw how far each layout's loss is from the reference's, step by step, as an SVG picture that stands alone.

A line after the last step is of a checkpoint that one engine saved and another loaded."""

import itertools
from html import escape

import numpy as np

from launch.parity.report import ParityReport
from launch.reports.axes import Axis, axis_titles, bottom_axis, horizontal_grid, log_ticks, power_text, svg_path, ticks
from launch.reports.style import svg_document

DRAWN_AS_ZERO = 1e-10  # a logarithmic axis has no zero
RIGHT, MIN_HEIGHT = 680, 480  # the right edge of the plot; the legend is beyond it
LEFT, TOP, BOTTOM, ROW = 66, 34, 50, 16
SAMPLE, CHARACTER = 50, 6.4  # widths in the legend: of the line before a name, and of one character
COLOURS, DASHES = [f"s{i}" for i in range(7)], ["none", "7 4", "2 3", "8 3 2 3"]


def draw_differences(report: ParityReport) -> str:
    """The picture: one line per layout over the steps, and the tolerance."""
    lines = [(row.result.name, 1, row.loss_differences) for row in [*report.yardsticks, *report.rows]]
    lines += [(row.name, report.steps + 1, row.differences) for row in report.resumes]
    height = max(MIN_HEIGHT, TOP + BOTTOM + ROW * (len(lines) + 1))
    tolerance = report.tolerances.loss
    names = [f"tolerance {tolerance:g}", *(name for name, _, _ in lines)]
    width = RIGHT + SAMPLE + 10 + CHARACTER * max(map(len, names))
    highest = max([tolerance, DRAWN_AS_ZERO, *(max(differences) for _, _, differences in lines)])
    last = max([2, report.steps, *(first + len(differences) - 1 for _, first, differences in lines)])
    x = Axis(1, last, LEFT, RIGHT)
    y = Axis(DRAWN_AS_ZERO / 1.5, highest * 2, height - BOTTOM, TOP, log=True)
    powers = [value for value in log_ticks(y.low, y.high, most=12) if value >= DRAWN_AS_ZERO * 0.99]
    steps = [step for step in ticks(x.low, x.high, most=10) if step == int(step)]
    parts = [
        f'<text class="title" x="{LEFT}" y="20">Every layout against one process, {escape(report.precision)}</text>',
        *horizontal_grid(x, y, powers, power_text),
        *bottom_axis(x, y, steps, lambda step: f"{int(step)}"),
        *axis_titles(x, y, across="step", up=f"relative difference of the loss (0 is drawn at {DRAWN_AS_ZERO:g})"),
        *_line(x, y, names[0], [tolerance] * last, first=1, place=0, colour="ink", dash="none", dots=False),
    ]
    styles = itertools.cycle(itertools.product(DASHES, COLOURS))
    for place, ((name, first, differences), (dash, colour)) in enumerate(zip(lines, styles, strict=False), 1):
        parts += _line(x, y, name, differences, first=first, place=place, colour=colour, dash=dash)
    style = "svg text.title { font-size: 14px; font-weight: 600; fill: var(--ink) }"
    return svg_document(parts, width=round(width), height=height, label="relative difference of the loss", style=style)


def _line(
    x: Axis,
    y: Axis,
    name: str,
    differences: list[float],
    *,
    first: int,
    place: int,
    colour: str,
    dash: str,
    dots: bool = True,
) -> list[str]:
    """One line, with a dot at each step, from step `first` on, and its row `place` of the legend."""
    at = x.pixels(first + np.arange(float(len(differences))))
    heights = y.pixels(np.maximum(np.array(differences), DRAWN_AS_ZERO))
    shared = f'class="line {colour}" style="stroke-dasharray:{dash}"'
    left, top = RIGHT + SAMPLE - 33, TOP + 4 + ROW * place
    return [
        f'<path {shared} d="{svg_path(at, heights)}"><title>{escape(name)}</title></path>',
        *(
            f'<circle class="dot {colour}" cx="{cx:.1f}" cy="{cy:.1f}" r="2"/>'
            for cx, cy in zip(at, heights, strict=True)
            if dots
        ),
        f'<path {shared} d="M{left} {top}h26"/>',
        f'<text x="{left + 33}" y="{top + 4}">{escape(name)}</text>',
    ]

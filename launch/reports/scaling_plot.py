"""Draw loss against compute for a family of runs as an SVG picture that stands alone or in a page.

Letters are larger than in the plots of a run's page, because the picture is often shown small.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from gpt.evaluation.scaling_law import GPT3_LAW, Curve, Point, PowerLaw
from gpt.telemetry.screen import human_count
from launch.reports.axes import Axis, axis_titles, bottom_axis, horizontal_grid, log_ticks, power_text, svg_path, ticks
from launch.reports.style import svg_document

WIDTH, HEIGHT = 720, 440  # of the plot; the legend comes below
LEFT, RIGHT, TOP, BOTTOM = 66, 20, 16, 56
COLUMNS, ROW = 4, 27  # of the legend
# Ordered by lightness, so that the order of the sizes is visible without colours, and visible on light and dark cards.
SHADES = ((92, 70, 190), (47, 111, 196), (33, 145, 140), (94, 180, 80), (224, 168, 20))
STYLE = """
.scaling text { font-size: 13px } .scaling .run { fill: none; stroke-width: 2; stroke-linejoin: round }
.scaling .used { fill: var(--card); stroke: var(--ink); stroke-width: 1.2 }
.scaling .fit { fill: none; stroke: var(--ink); stroke-width: 1.8; stroke-dasharray: 8 5 }
.scaling .gpt3 { fill: none; stroke: var(--fault); stroke-width: 2; stroke-dasharray: 2 4 }
.scaling text.size { font-weight: 600; paint-order: stroke; stroke: var(--card); stroke-width: 4px }
@media (max-width: 40rem) { .scaling text { font-size: 19px } }
"""


def draw_family(
    curves: Sequence[Curve], *, used: Sequence[Point], law: PowerLaw | None, law_text: str, gpt3_text: str
) -> str:
    """The SVG document. `used`: the evaluations that `law` was fitted to, if there is a law."""
    x, y = _axes(curves)
    colours = _colours(len(curves))
    legend = _legend(curves, colours, law_text if law is not None else "", gpt3_text)
    parts = [
        '<g class="scaling">',
        *horizontal_grid(x, y, ticks(y.low, y.high, most=8), lambda value: f"{value:.3g}"),
        *bottom_axis(x, y, log_ticks(x.low, x.high, most=7), power_text),
        *axis_titles(x, y, across="training compute, PF-days", up="validation loss, nats a token"),
        _law_line(x, y, GPT3_LAW, "gpt3", x.low, gpt3_text),
        *(_run(x, y, curve, colour) for curve, colour in zip(curves, colours, strict=True)),
        *([] if law is None else [_law_line(x, y, law, "fit", used[0].pf_days, law_text)]),
        *(_circle(x, y, point, curves[point.curve].name) for point in used if law is not None),
        *(_size(x, y, curve) for curve in curves),
        *legend,
        "</g>",
    ]
    height = HEIGHT + ROW * (-(-len(curves) // COLUMNS) + (3 if law is not None else 1))
    return svg_document(
        parts, width=WIDTH, height=height, label="validation loss against training compute", style=STYLE
    )


def _axes(curves: Sequence[Curve]) -> tuple[Axis, Axis]:
    compute = np.concatenate([curve.pf_days for curve in curves])
    losses = np.concatenate([curve.losses for curve in curves])
    low, high = float(compute.min()) / 1.3, float(compute.max()) * 1.6
    laws = [GPT3_LAW.loss(low), GPT3_LAW.loss(high)]
    x = Axis(low, high, LEFT, WIDTH - RIGHT, log=True)
    return x, Axis(min(losses.min(), *laws) / 1.12, max(losses.max(), *laws) * 1.02, HEIGHT - BOTTOM, TOP, log=True)


def _colours(n: int) -> list[str]:
    """`n` colours at equal distances along SHADES."""
    found = []
    for i in range(n):
        at = i * (len(SHADES) - 1) / max(1, n - 1)
        before = min(int(at), len(SHADES) - 2)
        pair = zip(SHADES[before], SHADES[before + 1], strict=True)
        found.append("#" + "".join(f"{round(a + (b - a) * (at - before)):02x}" for a, b in pair))
    return found


def _run(x: Axis, y: Axis, curve: Curve, colour: str) -> str:
    path = svg_path(x.pixels(curve.pf_days), y.pixels(curve.losses))
    end = f'cx="{x.pixel(curve.pf_days[-1]):.1f}" cy="{y.pixel(curve.losses[-1]):.1f}"'
    return (
        f'<path class="run" stroke="{colour}" d="{path}"><title>{escape(curve.name)}</title></path>'
        f'<circle {end} r="4" fill="{colour}"/>'
    )


def _law_line(x: Axis, y: Axis, law: PowerLaw, kind: str, start: float, text: str) -> str:
    """A power law is straight between logarithmic axes: two points, up to the right edge or the lower one."""
    end = min(x.high, (y.low / law.factor) ** (1 / law.exponent)) if law.exponent < 0 else x.high
    ends = ((x.pixel(at), y.pixel(law.loss(at))) for at in (start, end))
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in ends)
    return f'<path class="{kind}" d="{path}"><title>{escape(text)}</title></path>'


def _circle(x: Axis, y: Axis, point: Point, name: str) -> str:
    title = f"{name}: {point.loss:.4f} after {human_count(point.tokens)} tokens, {point.pf_days:.3g} PF-days"
    centre = f'cx="{x.pixel(point.pf_days):.1f}" cy="{y.pixel(point.loss):.1f}"'
    return f'<circle class="used" {centre} r="2.6"><title>{escape(title)}</title></circle>'


def _size(x: Axis, y: Axis, curve: Curve) -> str:
    """The size of a run, below the end of its line: other lines lie on or above the frontier, so none runs there."""
    at = f'x="{x.pixel(curve.pf_days[-1]) - 4:.1f}" y="{y.pixel(curve.losses[-1]) + 26:.1f}"'
    return f'<text class="size" {at} text-anchor="end">{human_count(curve.n_parameters)}</text>'


def _legend(curves: Sequence[Curve], colours: Sequence[str], law_text: str, gpt3_text: str) -> list[str]:
    width = (WIDTH - LEFT) // COLUMNS
    parts = []
    for i, (curve, colour) in enumerate(zip(curves, colours, strict=True)):
        left, top = LEFT + i % COLUMNS * width, HEIGHT + i // COLUMNS * ROW + 6
        parts.append(f'<path class="run" stroke="{colour}" d="M{left} {top}h26"/>')
        parts.append(f'<text x="{left + 34}" y="{top + 5}">{human_count(curve.n_parameters)}</text>')
    rows = [("gpt3", gpt3_text)]
    if law_text:
        rows = [("fit", law_text), ("used", "evaluations that it is fitted to"), *rows]
    top = HEIGHT + -(-len(curves) // COLUMNS) * ROW + 6
    for kind, text in rows:
        line, circle = f'd="M{LEFT} {top}h26"', f'cx="{LEFT + 13}" cy="{top}" r="2.6"'
        parts.append(f'<circle class="used" {circle}/>' if kind == "used" else f'<path class="{kind}" {line}/>')
        parts.append(f'<text x="{LEFT + 34}" y="{top + 5}">{escape(text)}</text>')
        top += ROW
    return parts

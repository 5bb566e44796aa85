"""Draws loss against compute for a family of runs as SVG text, with no library and no script; fits nothing.

It is a picture of its own: its style is inside, it is light on any page, its letters are larger where it is small.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from gpt.evaluation.scaling_law import GPT3_LAW, Curve, Point, PowerLaw
from gpt.telemetry.console import human_count
from launch.reports.plots import Axis, log_ticks, ticks

WIDTH, HEIGHT = 720, 440  # the legend comes below
LEFT, RIGHT, TOP, BOTTOM = 66, 20, 16, 64
COLUMNS, ROW = 4, 27  # of the legend
# Dark to light, so that the order of the sizes is seen without colours too.
SHADES = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 180, 80), (214, 158, 0))
STYLE = """.scaling text{font:13px system-ui,sans-serif;fill:#3d4754}.scaling .paper{fill:#fff}
.scaling .grid{stroke:#e3e7ec;fill:none}.scaling .axis{stroke:#5b6675;fill:none}
.scaling .run{fill:none;stroke-width:2;stroke-linejoin:round}.scaling .used{fill:#fff;stroke:#1c2430;stroke-width:1.2}
.scaling .fit{stroke:#1c2430;fill:none;stroke-width:1.8;stroke-dasharray:8 5}
.scaling .gpt3{stroke:#b5332e;fill:none;stroke-width:2;stroke-dasharray:2 4}
.scaling text.size{font-weight:600;paint-order:stroke;stroke:#fff;stroke-width:4px}
@media(max-width:40rem){.scaling text{font-size:19px}}"""


def draw_family(
    curves: Sequence[Curve], *, used: Sequence[Point], law: PowerLaw | None, law_text: str, gpt3_text: str
) -> str:
    """The SVG document. `used`: the evaluations that `law`, if there is one, was fitted to."""
    x, y = _axes(curves)
    colours = _colours(len(curves))
    legend = _legend(curves, colours, law_text if law is not None else "", gpt3_text)
    height = HEIGHT + ROW * (-(-len(curves) // COLUMNS) + (3 if law is not None else 1))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="scaling" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="validation loss against training compute">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        *_grid(x, y),
        _law_line(x, y, GPT3_LAW, "gpt3", x.low, gpt3_text),
        *(_run(x, y, curve, colour) for curve, colour in zip(curves, colours, strict=True)),
        *([] if law is None else [_law_line(x, y, law, "fit", used[0].pf_days, law_text)]),
        *(_circle(x, y, point, curves[point.curve].name) for point in used if law is not None),
        *(_size(x, y, curve) for curve in curves),
        *legend,
        "</svg>\n",
    ]
    return "\n".join(parts)


def _axes(curves: Sequence[Curve]) -> tuple[Axis, Axis]:
    compute = np.concatenate([curve.pf_days for curve in curves])
    losses = np.concatenate([curve.losses for curve in curves])
    low, high = float(compute.min()) / 1.3, float(compute.max()) * 1.6
    laws = [GPT3_LAW.loss(low), GPT3_LAW.loss(high)]
    x = Axis(low, high, LEFT, WIDTH - RIGHT, log=True)
    return x, Axis(min(losses.min(), *laws) / 1.12, max(losses.max(), *laws) * 1.02, HEIGHT - BOTTOM, TOP, log=True)


def _colours(n: int) -> list[str]:
    found = []
    for i in range(n):
        at = i * (len(SHADES) - 1) / max(1, n - 1)
        before = min(int(at), len(SHADES) - 2)
        pair = zip(SHADES[before], SHADES[before + 1], strict=True)
        found.append("#" + "".join(f"{round(a + (b - a) * (at - before)):02x}" for a, b in pair))
    return found


def _grid(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value in ticks(y.low, y.high, most=8):
        at = y.place_one(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4.5:.1f}" text-anchor="end">{value:.3g}</text>')
    floor = HEIGHT - BOTTOM
    for value in log_ticks(x.low, x.high, most=7):
        at = x.place_one(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{floor}"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 22}" text-anchor="middle">{_compute_text(value)}</text>')
    middle, centred = (TOP + floor) // 2, 'text-anchor="middle"'
    return [
        *parts,
        f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) // 2}" y="{HEIGHT - 16}" {centred}>training compute, PF-days</text>',
        f'<text transform="translate(20 {middle}) rotate(-90)" {centred}>validation loss, nats a token</text>',
    ]


def _run(x: Axis, y: Axis, curve: Curve, colour: str) -> str:
    places = zip(x.place(curve.pf_days), y.place(curve.losses), strict=True)
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    end = f'cx="{x.place_one(curve.pf_days[-1]):.1f}" cy="{y.place_one(curve.losses[-1]):.1f}"'
    return (
        f'<path class="run" stroke="{colour}" d="{path}"><title>{escape(curve.name)}</title></path>'
        f'<circle {end} r="4" fill="{colour}"/>'
    )


def _law_line(x: Axis, y: Axis, law: PowerLaw, kind: str, start: float, text: str) -> str:
    """Straight between logarithmic axes, so two points do, to the right edge or to where it leaves the picture."""
    end = min(x.high, (y.low / law.factor) ** (1 / law.exponent)) if law.exponent < 0 else x.high
    ends = ((x.place_one(at), y.place_one(law.loss(at))) for at in (start, end))
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in ends)
    return f'<path class="{kind}" d="{path}"><title>{escape(text)}</title></path>'


def _circle(x: Axis, y: Axis, point: Point, name: str) -> str:
    told = f"{name}: {point.loss:.4f} after {human_count(point.tokens)} tokens, {point.pf_days:.3g} PF-days"
    place = f'cx="{x.place_one(point.pf_days):.1f}" cy="{y.place_one(point.loss):.1f}"'
    return f'<circle class="used" {place} r="2.6"><title>{escape(told)}</title></circle>'


def _size(x: Axis, y: Axis, curve: Curve) -> str:
    """Below the end of its line, where no line runs: all lie on or above the frontier."""
    at = f'x="{x.place_one(curve.pf_days[-1]) - 4:.1f}" y="{y.place_one(curve.losses[-1]) + 26:.1f}"'
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


def _compute_text(value: float) -> str:
    """10⁻⁶, 3·10⁻⁶, or as it is where that is short."""
    if 0.01 <= value < 1000:
        return f"{value:g}"
    factor, power = f"{value:.0e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if factor == "1" else f"{factor}·10{raised}"

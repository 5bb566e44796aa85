"""The plots of the report as SVG: intervals, precision and recall, calibration, the learning curve."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from gpt.evaluation.intervals import Interval
from launch.moderation_report.measured import CategoryFigures
from launch.moderation_report.rounds import Round
from launch.reports.axes import Axis, bottom_axis, horizontal_grid, svg_path, ticks

SMALL, LEFT, RIGHT, TOP, BOTTOM = 220, 34, 8, 8, 24  # a square small plot
ROW, NAME, FOREST = 24, 74, 600
LETTER, MAX_LETTERS = 12, 18  # of a name in bold, as large as on a phone; a longer name is cut
WIDE, HIGH = 560, 250
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_LINES = 7


def forest(rows: Sequence[tuple[str, Sequence[Interval]]], *, label: str) -> str:
    """One row for each category, one interval for each version: a dot, and a line over the interval."""
    versions = max(len(intervals) for _, intervals in rows)
    step = ROW + 10 * (versions - 1)
    height = step * len(rows) + 28
    shown = [name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}\u2026" for name, _ in rows]
    left = max(NAME, 8 + LETTER * max(map(len, shown), default=0))
    x = Axis(0.0, 1.0, left, FOREST - 12)
    parts = [_open(FOREST, height, label)]
    for share in SHARES:
        at = x.pixel(share)
        parts.append(f'<path class="grid" d="M{at:.1f} 2V{height - 24}"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - 8}" text-anchor="middle">{share:g}</text>')
    for i, (name, intervals) in enumerate(rows):
        middle = step * i + step / 2
        text = f"{escape(shown[i])}<title>{escape(name)}</title>" if shown[i] != name else escape(name)
        parts.append(f'<text class="name" x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end">{text}</text>')
        for k, one in enumerate(intervals):
            at = middle + 10 * (k - (len(intervals) - 1) / 2)
            parts.append(_interval(x, at, one, f"s{k}", f"{name}: {interval_text(one)}"))
    return "".join([*parts, "</svg>"])


def precision_recall(versions: Sequence[CategoryFigures]) -> str:
    """Precision over recall of each version, and the base rate as a dashed line."""
    x, y = _square()
    parts = _small_frame(x, y, f"precision over recall of {versions[0].measures.category}")
    known, positives = versions[0].measures.known, versions[0].measures.positives
    if known:
        base = y.pixel(positives / known)
        parts.append(f'<path class="base" d="M{x.start:g} {base:.1f}H{x.end:g}"><title>base rate</title></path>')
    for k, one in enumerate(versions):
        if len(one.curve):
            recall, precision = one.curve.T  # steps, as in the sum of average precision
            xs = np.repeat(x.pixels(np.concatenate([[0.0], recall])), 2)[1:-1]
            ys = np.repeat(y.pixels(precision), 2)
            title = f"AUPRC {interval_text(one.measures.auprc)}"
            parts.append(f'<path class="line s{k}" d="{svg_path(xs, ys)}"><title>{escape(title)}</title></path>')
        at = one.measures
        if at.recall.estimate >= 0 and at.precision.estimate >= 0:
            where = f'cx="{x.pixel(at.recall.estimate):.1f}" cy="{y.pixel(at.precision.estimate):.1f}"'
            parts.append(f'<circle class="point s{k}" {where} r="3.5"><title>at the threshold</title></circle>')
    return "".join([*parts, "</svg>"])


def calibration(versions: Sequence[CategoryFigures]) -> str:
    """Share of positives over the mean score of each bin; the area of a dot grows with its number of texts."""
    x, y = _square()
    parts = _small_frame(x, y, f"calibration of {versions[0].measures.category}")
    parts.append(f'<path class="base" d="M{x.start:g} {y.start:g}L{x.end:g} {y.end:g}"><title>perfect</title></path>')
    for k, one in enumerate(versions):
        if not one.bins:
            continue
        xs = x.pixels(np.array([found["mean_score"] for found in one.bins]))
        ys = y.pixels(np.array([found["positive_share"] for found in one.bins]))
        total = sum(found["texts"] for found in one.bins)
        parts.append(f'<path class="line s{k}" d="{svg_path(xs, ys)}"/>')
        for cx, cy, found in zip(xs, ys, one.bins, strict=True):
            radius = 1.8 + 5 * math.sqrt(found["texts"] / total)
            title = (
                f"scores {found['low']:.1f} to {found['high']:.1f}: {found['texts']:,.0f} texts, "
                f"{found['positive_share']:.1%} positive"
            )
            parts.append(f'<circle class="bin s{k}" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius:.1f}">'
                         f"<title>{escape(title)}</title></circle>")  # fmt: skip
    return "".join([*parts, "</svg>"])


def learning_curve(rounds: Sequence[Round], names: Sequence[str]) -> str:
    """AUPRC over the number of labels, with intervals."""
    counts = [one.labels for one in rounds]
    x = Axis(0, max(counts) * 1.04 or 1.0, 56, WIDE - 16)
    y = Axis(0.0, 1.0, HIGH - 28, 10)
    parts = [_open(WIDE, HIGH, "AUPRC over the number of labels"), *horizontal_grid(x, y, SHARES, lambda v: f"{v:g}")]
    parts += bottom_axis(x, y, ticks(x.low, x.high, most=6), lambda value: f"{int(value):,}")
    for k, name in enumerate(names[:MAX_LINES]):
        found = [(one.labels, dict(one.auprc)[name]) for one in rounds]
        found = [(n, interval) for n, interval in found if interval.estimate >= 0]
        if not found:
            continue
        xs = x.pixels(np.array([float(n) for n, _ in found]))
        ys = y.pixels(np.array([interval.estimate for _, interval in found]))
        parts.append(f'<path class="line s{k}" d="{svg_path(xs, ys)}"/>')
        for at, cy, (n, interval) in zip(xs, ys, found, strict=True):
            title = escape(f"{name}, {n:,} labels: {interval_text(interval)}")
            if interval.low >= 0 and k == 0:
                whole = f"M{at:.1f} {y.pixel(interval.low):.1f}V{y.pixel(interval.high):.1f}"
                parts.append(f'<path class="line s{k}" d="{whole}"/>')
            parts.append(f'<circle class="dot s{k}" cx="{at:.1f}" cy="{cy:.1f}" r="3"><title>{title}</title></circle>')
    return "".join([*parts, "</svg>"])


def interval_text(interval: Interval) -> str:
    """0.812 (0.774 to 0.846); without bounds the estimate alone."""
    if math.isnan(interval.estimate):
        return "undefined"
    if math.isnan(interval.low):
        return f"{interval.estimate:.3f}"
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _open(width: float, height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'


def _interval(x: Axis, at: float, one: Interval, colour: str, title: str) -> str:
    if math.isnan(one.estimate):
        return f'<text x="{x.start + 4:g}" y="{at + 4:.1f}">undefined</text>'
    line = ""
    if not math.isnan(one.low):
        line = f'<path class="whisker {colour}" d="M{x.pixel(one.low):.1f} {at:.1f}H{x.pixel(one.high):.1f}"/>'
    dot = (
        f'<circle class="{"dot" if line else "hollow"} {colour}" cx="{x.pixel(one.estimate):.1f}" cy="{at:.1f}" r="4">'
    )
    return f"{line}{dot}<title>{escape(title)}</title></circle>"


def _square() -> tuple[Axis, Axis]:
    return Axis(0.0, 1.0, LEFT, SMALL - RIGHT), Axis(0.0, 1.0, SMALL - BOTTOM, TOP)


def _small_frame(x: Axis, y: Axis, label: str) -> list[str]:
    grid = horizontal_grid(x, y, (0.0, 0.5, 1.0), lambda value: f"{value:g}")
    return [_open(SMALL, SMALL, label), *grid, *bottom_axis(x, y, (0.0, 0.5, 1.0), lambda value: f"{value:g}")]

"""The report of a reward run on rankings: lines for the screen, and a picture of its calibration."""

from collections.abc import Mapping

import numpy as np

from gpt.post_training.ranking_accuracy import Accuracy, CalibrationBin, RankingReport
from launch.reports.axes import Axis, axis_titles, bottom_axis, horizontal_grid, svg_path
from launch.reports.style import svg_document

MAX_LABELLERS = 20  # on the screen
WIDTH, HEIGHT = 480, 440
LEFT, RIGHT, TOP, BOTTOM = 66, 20, 16, 56
STYLE = """
.calibration text { font-size: 13px } .calibration .even { stroke: var(--soft); stroke-dasharray: 6 4; fill: none }
.calibration .found { stroke: #2f6fc4; stroke-width: 2; fill: none } .calibration circle { fill: #2f6fc4 }
"""


def report_lines(report: RankingReport) -> list[str]:
    """Lines for a person."""
    lines = [
        f"accuracy: {describe(report.overall)}; mean over prompts {report.by_prompt:.4f}",
        f"loss: {report.loss:.4f} nats a prompt (log 2 = 0.6931 is a guess)",
        f"reward: mean {report.reward_mean:.4f}, standard deviation {report.reward_std:.4f}, "
        f"{report.completions:,} completions" + (f", {report.nan:,} of them without a reward" if report.nan else ""),
        *(f"margin {name}: {describe(each)}" for name, each in report.by_margin.items()),
        *_labeller_lines(report.by_labeller),
    ]
    if report.between_labellers.pairs:
        lines.append(f"labellers agree with each other: {describe(report.between_labellers)}")
        lines.append(f"rewards agree with labellers on these pairs: {describe(report.model_on_these)}")
    for name, each in report.longer_is_better.items():
        lines.append(f"the longer completion is better by the {name}: {describe(each)}")
    if report.calibration:
        lines.append(f"calibration error: {report.calibration_error:.4f} (predicted against observed probability)")
    return lines


def _labeller_lines(found: Mapping[str, Accuracy]) -> list[str]:
    """A line for each of the labellers with the most pairs."""
    names = sorted(found, key=lambda name: (-found[name].pairs, name))
    lines = [f"labeller {name}: {describe(found[name])}" for name in names[:MAX_LABELLERS]]
    more = len(names) - MAX_LABELLERS
    return [*lines, f"{more:,} more labellers with fewer pairs: see --json"] if more > 0 else lines


def describe(found: Accuracy) -> str:
    """Write the share with its interval: ".7213 (95% by prompt .7021 to .7402; 4,096 pairs of 205 prompts)"."""
    if not found.pairs:
        return "no pairs"
    return (
        f"{found.share:.4f} (95% by prompt {found.low:.4f} to {found.high:.4f}; {found.pairs:,} pairs of "
        f"{found.prompts:,} prompts)"
    )


def draw_calibration(bins: tuple[CalibrationBin, ...]) -> str:
    """An SVG picture of the share of pairs in the right order against its prediction, sigmoid(r_better - r_worse)."""
    low = min([0.5, *(each.observed for each in bins)])
    low = np.floor(low * 10) / 10
    x = Axis(0.5, 1.0, LEFT, WIDTH - RIGHT)
    y = Axis(low, 1.0, HEIGHT - BOTTOM, TOP)
    predicted = np.array([each.predicted for each in bins])
    observed = np.array([each.observed for each in bins])
    even = np.array([0.5, 1.0])
    parts = [
        '<g class="calibration">',
        *horizontal_grid(x, y, [low + 0.1 * i for i in range(round((1 - low) * 10) + 1)], lambda value: f"{value:.1f}"),
        *bottom_axis(x, y, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], lambda value: f"{value:.1f}"),
        *axis_titles(x, y, across="predicted probability of the order", up="observed share in this order"),
        f'<path class="even" d="{svg_path(x.pixels(even), y.pixels(even))}"/>',
        f'<path class="found" d="{svg_path(x.pixels(predicted), y.pixels(observed))}"/>',
        *(_dot(x, y, each) for each in bins),
        "</g>",
    ]
    return svg_document(parts, width=WIDTH, height=HEIGHT, label="calibration of a reward model", style=STYLE)


def _dot(x: Axis, y: Axis, each: CalibrationBin) -> str:
    title = f"predicted {each.predicted:.3f}, observed {each.observed:.3f}, {each.pairs:,} pairs"
    centre = f'cx="{x.pixel(each.predicted):.1f}" cy="{y.pixel(each.observed):.1f}"'
    return f'<circle {centre} r="4"><title>{title}</title></circle>'

"""Draw rewards against sqrt(KL): the policy, best-of-n if it was measured, and the laws of Gao et al. (2210.10760)."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import read_bytes
from gpt.post_training.analysis.over_optimisation import MIN_DISTANCE, RewardLaw, fit_law
from gpt.post_training.analysis.series import PolicyMetrics, aligned
from launch.reports.axes import Axis, axis_titles, bottom_axis, horizontal_grid, svg_path, ticks

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 12, 46
MAX_POINTS = 300  # of a curve in the picture
BEST_OF_N = "best_of_n.json"  # in a run's directory

Values = NDArray[np.float64]


@dataclass(frozen=True)
class RewardCurve:
    """One reward over distances from the reference, drawn as dots, or as circles for best-of-n. `colour`: CSS class."""

    name: str
    colour: str
    d: Values
    rewards: Values
    law: RewardLaw | None
    is_best_of_n: bool = False


def over_optimisation_part(metrics: PolicyMetrics, directory: Path) -> str:
    """The picture with its key and the fitted laws. Empty if KL or reward are missing."""
    curves = [*policy_curves(metrics), *best_of_n_curves(directory)]
    if not curves:
        return ""
    key = "".join(f"<span class=key><i class={curve.colour}></i>{escape(curve.name)}</span>" for curve in curves)
    laws = "".join(
        f"<tr><td class=word><i class={curve.colour}></i>{escape(curve.name)}</td>"
        f"<td class=word>{escape(curve.law.text)}</td><td>{curve.law.r_squared:.3f}</td>"
        f"<td>{_peak_text(curve.law)}</td></tr>"
        for curve in curves
        if curve.law is not None
    )
    head = "<tr><th class=word>curve</th><th class=word>fit</th><th>R²</th><th>highest at d</th></tr>"
    table = f"<div class=scroll><table>{head}{laws}</table></div>" if laws else ""
    note = (
        "Gains in reward over the start; d = sqrt(KL), KL in nats a response. Over-optimisation: the trained reward "
        "still rises with d, and the gold reward, which is not trained on, falls. Laws: "
        "d (alpha - beta d) for best-of-n, d (alpha - beta log d) for RL (arXiv 2210.10760)."
    )
    return (
        f"<h2>Reward and distance from the reference</h2><p class=note>{note}</p>"
        f"<figure class=over><figcaption>{key}</figcaption>{draw_rewards(curves)}</figure>{table}"
    )


def _peak_text(law: RewardLaw) -> str:
    return f"{law.peak:.3g}" if law.peak < 1e4 else "none"


def policy_curves(metrics: PolicyMetrics) -> list[RewardCurve]:
    """The trained and the gold reward of each iteration, less their starting values."""
    curves = []
    for name, title, colour in (("reward", "trained reward", "s0"), ("gold_reward", "gold reward", "s1")):
        if name in metrics and "kl" in metrics:
            _, (kl, rewards) = aligned(metrics["kl"], metrics[name])
            d, rewards = np.sqrt(np.maximum(kl, 0.0)), rewards - metrics[name].start
            if len(d):
                curves.append(RewardCurve(f"{title}, RL", colour, d, rewards, fit_law(d, rewards, form="RL")))
    return curves


def best_of_n_curves(directory: Path) -> list[RewardCurve]:
    """The curves of best_of_n.json, less their values at the smallest n; none if it is missing or damaged."""
    found: list[dict[str, float]] = []
    with suppress(OSError, ConfigError, ValueError):
        read = decode_json(read_bytes(directory / BEST_OF_N))
        found = [point for point in read if isinstance(point, dict)] if isinstance(read, list) else []
    curves = []
    for name, title, colour in (("proxy", "trained reward", "s2"), ("gold", "gold reward", "s3")):
        points = [
            (point["kl"], point[name])
            for point in found
            if all(isinstance(point.get(key), (int, float)) and abs(point[key]) < 1e30 for key in ("kl", name))
        ]
        if points:
            kl, rewards = np.array(points, dtype=np.float64).T
            d, rewards = np.sqrt(np.maximum(kl, 0.0)), rewards - rewards[np.argmin(kl)]
            law = fit_law(d, rewards, form="best of n")
            curves.append(RewardCurve(f"{title}, best-of-n", colour, d, rewards, law, is_best_of_n=True))
    return curves


def draw_rewards(curves: Sequence[RewardCurve]) -> str:
    """The SVG picture."""
    d = np.concatenate([curve.d for curve in curves])
    rewards = np.concatenate([curve.rewards for curve in curves])
    margin = 0.06 * float(np.ptp(rewards)) or 1.0
    x = Axis(0.0, float(d.max()) * 1.04 or 1.0, LEFT, WIDTH - RIGHT)
    y = Axis(float(rewards.min()) - margin, float(rewards.max()) + margin, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="reward against the square root of KL">',
        *horizontal_grid(x, y, ticks(y.low, y.high, most=7), lambda value: f"{value:.3g}"),
        *bottom_axis(x, y, ticks(x.low, x.high, most=8), lambda value: f"{value:.3g}"),
        *axis_titles(x, y, across="d = sqrt(KL)", up="gain in reward"),
        *(_points(x, y, curve) for curve in curves),
        *(_law(x, y, curve) for curve in curves if curve.law is not None),
        "</svg>",
    ]
    return "".join(parts)


def _points(x: Axis, y: Axis, curve: RewardCurve) -> str:
    every = -(-len(curve.d) // MAX_POINTS)
    looks = 'class="hollow {}" r="4"' if curve.is_best_of_n else 'class="point {}" r="2.6"'
    return "".join(
        f'<circle {looks.format(curve.colour)} cx="{x.pixel(d):.1f}" cy="{y.pixel(reward):.1f}"><title>'
        f"{escape(curve.name)}: {reward:.4g} at d = {d:.3g}</title></circle>"
        for d, reward in zip(curve.d[::every].tolist(), curve.rewards[::every].tolist(), strict=True)
    )


def _law(x: Axis, y: Axis, curve: RewardCurve) -> str:
    """The law over the distances that gave it, with a line at its peak if that is among them.

    Where it leaves the plot, it is not drawn.
    """
    assert curve.law is not None
    low, high = max(float(curve.d.min()), MIN_DISTANCE if curve.law.form == "RL" else 1e-3), float(curve.d.max())
    d = np.linspace(low, high, 120)
    rewards = curve.law.reward(d)
    inside = (rewards >= y.low) & (rewards <= y.high)
    runs = np.split(np.arange(len(d)), np.flatnonzero(np.diff(inside)) + 1)
    drawn = "".join(svg_path(x.pixels(d[run]), y.pixels(rewards[run])) for run in runs if inside[run[0]])
    dashed = " dashed" if curve.is_best_of_n else ""
    path = f'<path class="fit {curve.colour}{dashed}" d="{drawn}"/>' if drawn else ""
    if not low < curve.law.peak < high:
        return path
    title = f"<title>{escape(curve.name)}: highest at d = {curve.law.peak:.3g}</title>"
    return (
        path
        + f'<path class="peak {curve.colour}" d="M{x.pixel(curve.law.peak):.1f} {TOP}V{HEIGHT - BOTTOM}">{title}</path>'
    )

"""Loss against training compute: the frontier of a family of runs, and the power law through it.

As in figure 3.1 of the GPT-3 paper (arXiv 2005.14165): compute is 6 N D for N parameters without embeddings and D
tokens, in petaflop/s-days.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError

PF_DAY_FLOPS = 8.64e19  # 10^15 FLOPs per second for a day
MIN_POINTS = 3  # for a power law
MIN_POINTS_FOR_INTERVAL = 5

Floats = NDArray[np.float64]


def training_flops(n_parameters: float, n_tokens: float) -> float:
    """Return 6 FLOPs per parameter and token, for forward and backward (Kaplan et al., arXiv 2001.08361, section
    2.1)."""
    return 6.0 * n_parameters * n_tokens


@dataclass(frozen=True)
class PowerLaw:
    """loss = factor * pf_days ** exponent. `exponent_95`: 95% confidence interval, for independent errors."""

    factor: float
    exponent: float
    exponent_95: tuple[float, float] | None = None

    def loss(self, pf_days: float) -> float:
        return self.factor * math.pow(pf_days, self.exponent)


GPT3_LAW = PowerLaw(2.57, -0.048)  # figure 3.1


@dataclass(frozen=True)
class Curve:
    """The validation losses of one run, by rising tokens."""

    name: str
    n_parameters: int  # without embeddings
    tokens: Floats  # (n,)
    losses: Floats  # (n,), nats per token

    @property
    def pf_days(self) -> Floats:
        return training_flops(self.n_parameters, 1.0) * self.tokens / PF_DAY_FLOPS

    def best_up_to(self, pf_days: float) -> float:
        """Return the lowest loss within this compute. Interpolates linearly in log-log between evaluations."""
        reached = self.pf_days <= pf_days
        found = self.losses[reached].min(initial=math.inf)
        if reached.any() and not reached.all():
            at = np.interp(math.log(pf_days), np.log(self.pf_days), np.log(self.losses))
            found = min(found, math.exp(at))
        return float(found)


@dataclass(frozen=True)
class Point:
    """One evaluation of curve number `curve`."""

    curve: int
    tokens: int
    pf_days: float
    loss: float


def frontier(curves: Sequence[Curve]) -> list[Point]:
    """Return the evaluations, by rising compute, whose loss no run beats with the same compute or less."""
    points: list[Point] = []
    for number, curve in enumerate(curves):
        for tokens, pf_days, loss in zip(curve.tokens, curve.pf_days, curve.losses, strict=True):
            others = [other.best_up_to(pf_days) for i, other in enumerate(curves) if i != number]
            if loss <= min(others, default=math.inf):
                points.append(Point(number, int(tokens), float(pf_days), float(loss)))
    points.sort(key=lambda point: point.pf_days)
    best = itertools.accumulate((point.loss for point in points), min, initial=math.inf)
    return [point for point, before in zip(points, best, strict=False) if point.loss < before]


def fitted_points(points: Sequence[Point]) -> list[Point]:
    """Return the part of a frontier to fit: from the first point of a second run on.

    The points before belong to the early training of the first run. Its loss falls as in any early training, and a
    still smaller run could have beaten it. Empty if one run has the whole frontier.
    """
    start = next((i for i, point in enumerate(points) if point.curve != points[0].curve), len(points))
    return list(points[start:])


def fit_power_law(points: Sequence[Point]) -> PowerLaw:
    """Fit by least squares in the logarithms, with equal weights. ConfigError: fewer than MIN_POINTS points."""
    if len(points) < MIN_POINTS:
        raise ConfigError(
            f"{len(points)} evaluations lie on the frontier after a second run takes the lead; a power law needs at "
            f"least {MIN_POINTS}. Train the larger runs for longer, or lower train.evaluate_every_tokens."
        )
    x = np.log([point.pf_days for point in points])
    y = np.log([point.loss for point in points])
    away = x - x.mean()
    spread = float(away @ away)
    exponent = float(away @ y) / spread
    factor = math.exp(float(y.mean()) - exponent * float(x.mean()))
    interval = None
    if len(points) >= MIN_POINTS_FOR_INTERVAL:
        left = y - y.mean() - exponent * away
        degrees = len(points) - 2
        half = t_quantile_975(degrees) * math.sqrt(float(left @ left) / degrees / spread)
        interval = (exponent - half, exponent + half)
    return PowerLaw(factor, exponent, interval)


def t_quantile_975(degrees: int) -> float:
    """Return the 0.975 quantile of Student's t, to 0.1% for 3 degrees of freedom or more.

    The expansion of Abramowitz and Stegun, 26.7.5.
    """
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees ** (i + 1) for i, term in enumerate(terms))

"""Loss against training compute: the frontier of a family of runs and the power law through it; reads no run.

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

PF_DAY_FLOPS = 8.64e19  # 10^15 a second for a day
MIN_POINTS = 3  # for a law
MIN_POINTS_FOR_INTERVAL = 5

Floats = NDArray[np.float64]


def training_flops(n_parameters: float, n_tokens: float) -> float:
    """Forward and backward pass: 6 a parameter and token (Kaplan et al., arXiv 2001.08361, section 2.1)."""
    return 6.0 * n_parameters * n_tokens


@dataclass(frozen=True)
class PowerLaw:
    """loss = factor * pf_days ** exponent. `exponent_95` is its 95 % interval were the points' errors independent."""

    factor: float
    exponent: float
    exponent_95: tuple[float, float] | None = None

    def loss(self, pf_days: float) -> float:
        return self.factor * math.pow(pf_days, self.exponent)


GPT3_LAW = PowerLaw(2.57, -0.048)  # figure 3.1


@dataclass(frozen=True)
class Curve:
    """The validation losses of one run by rising tokens."""

    name: str
    n_parameters: int  # without embeddings
    tokens: Floats  # (n,)
    losses: Floats  # (n,), nats a token

    @property
    def pf_days(self) -> Floats:
        return training_flops(self.n_parameters, 1.0) * self.tokens / PF_DAY_FLOPS

    def best_up_to(self, pf_days: float) -> float:
        """The lowest loss that at most so much compute gave, between evaluations on a line in the logarithms."""
        reached = self.pf_days <= pf_days
        found = self.losses[reached].min(initial=math.inf)
        if reached.any() and not reached.all():
            at = np.interp(math.log(pf_days), np.log(self.pf_days), np.log(self.losses))
            found = min(found, math.exp(at))
        return float(found)


@dataclass(frozen=True)
class Point:
    """One evaluation, of curve number `curve`."""

    curve: int
    tokens: int
    pf_days: float
    loss: float


def frontier(curves: Sequence[Curve]) -> list[Point]:
    """The evaluations, by rising compute, below whose loss no run was for as little compute."""
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
    """The part of a frontier that a law is fitted to: from where a second run takes the lead on.

    Before that stands the start of the run that comes first, where the loss falls as the loss of every young run does,
    and which a still smaller run might have beaten. Empty where one run leads throughout.
    """
    start = next((i for i, point in enumerate(points) if point.curve != points[0].curve), len(points))
    return list(points[start:])


def fit_power_law(points: Sequence[Point]) -> PowerLaw:
    """By least squares in the logarithms, all points alike. ConfigError: too few."""
    if len(points) < MIN_POINTS:
        raise ConfigError(
            f"{len(points)} evaluations lie on the frontier after a second run takes the lead, fewer than "
            f"{MIN_POINTS}: train the larger runs for longer, or evaluate more often (train.evaluate_every_tokens)"
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
    """Below which Student's t lies with probability 0.975; to 0.1 % from 3 degrees of freedom on (the expansion of
    Abramowitz and Stegun, 26.7.5)."""
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees ** (i + 1) for i, term in enumerate(terms))

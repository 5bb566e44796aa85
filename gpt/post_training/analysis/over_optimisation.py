"""Reward against the distance from the reference, and the laws of over-optimisation of Gao et al. (arXiv 2210.10760).

The distance is d = sqrt(KL(policy, reference)), with KL in nats a response. Rewards are relative to those at d = 0.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Form = Literal["best of n", "RL"]
MIN_POINTS = 4  # one more than the parameters of a law
MIN_DISTANCE = 0.3  # the noise of KL is large below

Values = NDArray[np.float64]


@dataclass(frozen=True)
class RewardLaw:
    """R(d) = start + d (alpha - beta d) for best of n, start + d (alpha - beta log d) for RL."""

    form: Form
    start: float
    alpha: float
    beta: float
    r_squared: float

    def reward(self, d: Values) -> Values:
        """The reward at distances d > 0, (n,)."""
        slope = d if self.form == "best of n" else np.log(np.maximum(d, 1e-12))
        return np.asarray(self.start + d * (self.alpha - self.beta * slope))

    @property
    def peak(self) -> float:
        """The distance with the highest reward; infinite if the reward never falls."""
        if self.beta <= 0:
            return math.inf
        if self.form == "best of n":
            return max(0.0, self.alpha / (2 * self.beta))
        return math.exp(min(700.0, self.alpha / self.beta - 1))

    @property
    def text(self) -> str:
        """The law with its numbers."""
        sign, slope = "-" if self.beta >= 0 else "+", "d" if self.form == "best of n" else "log d"
        return f"{self.start:.3g} + d ({self.alpha:.3g} {sign} {abs(self.beta):.3g} {slope})"


def fit_law(d: Values, rewards: Values, *, form: Form) -> RewardLaw | None:
    """Fit a law by least squares; both forms are linear in their parameters. None with too few or too close points."""
    used = np.isfinite(d) & np.isfinite(rewards) & ((d >= MIN_DISTANCE) if form == "RL" else (d >= 0))
    d, rewards = d[used], rewards[used]
    if len(np.unique(d)) < MIN_POINTS or float(np.ptp(d)) < 1e-9:
        return None
    curved = d * d if form == "best of n" else d * np.log(d)
    design = np.stack([np.ones_like(d), d, -curved], axis=1)
    (start, alpha, beta), _, rank, _ = np.linalg.lstsq(design, rewards, rcond=None)
    if rank < design.shape[1]:
        return None
    total = float(((rewards - rewards.mean()) ** 2).sum())
    rest = float(((rewards - design @ np.array([start, alpha, beta])) ** 2).sum())
    return RewardLaw(form, float(start), float(alpha), float(beta), 1 - rest / total if total > 0 else 1.0)


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n to the policy that it draws from, in nats: log n - (n - 1) / n; an upper bound with ties."""
    return math.log(n) - (n - 1) / n

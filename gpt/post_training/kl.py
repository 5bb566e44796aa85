"""Estimates of a KL divergence from sampled tokens, and the coefficient of the penalty on it."""

from typing import Literal

from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor, *, estimator: KLEstimator) -> Tensor:
    """Estimate KL(pi || reference) at each token that pi has sampled, (n, t) in nats, 0 outside the mask.

    With r = pi_reference / pi at the token: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r
    (joschu.net/blog/kl-approx.html). k1 and k3 are unbiased. k1 may be negative for a token; k3 never is.
    """
    log_ratio = (reference_log_probs - log_probs).where(mask, 0.0)
    if estimator == "k1":
        return -log_ratio
    return log_ratio.square() / 2 if estimator == "k2" else log_ratio.expm1() - log_ratio


def kl_per_response(kl: Tensor, mask: Tensor) -> Tensor:
    """The sum over each response's tokens, in nats, (n,). Its mean over responses does not depend on padding."""
    return kl.where(mask, 0.0).sum(dim=1)


def adapted_beta(beta: float, kl: float, *, target: float, horizon: int, episodes: int) -> float:
    """The coefficient after `episodes` episodes whose mean KL a response was `kl` nats (arXiv 1909.08593, section 2.2).

    It grows while the KL is above `target`, by at most the factor 1 + 0.2 * episodes / horizon.
    """
    error = max(-0.2, min(0.2, kl / target - 1.0))
    return beta * (1.0 + error * episodes / horizon)

"""The losses of PPO for a policy and for its critic (arXiv 1707.06347, section 3), as sums over response tokens.

A step divides the sums by the number of response tokens in the whole batch. A mean of each response or micro-batch
would weigh tokens by the length of their neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.losses.base import LossTotals, VocabularyOutputs
from gpt.losses.batch import Batch, counted_targets
from gpt.losses.marks import IGNORE
from gpt.losses.text_mean import mean_over_text
from gpt.losses.token_log_probs import log_probs_and_entropy, token_log_probs


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, *, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-min(ratio * A, clamp(ratio, 1 - low, 1 + high) * A) of each token, and whether clipping has raised it."""
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - low, 1.0 + high)
    return torch.maximum(free, clipped), clipped > free


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Half the squared error of each value, and whether clipping has raised it.

    With `clip`, the larger of this loss and that of the value clamped to within `clip` of the old value.
    """
    free = (values - returns).square()
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return torch.maximum(free, clipped) / 2, clipped > free


def policy_terms(
    outputs: VocabularyOutputs,
    targets: Tensor,
    extra: Mapping[str, Tensor],
    *,
    low: float,
    high: float,
    temperature: float,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The log-probability, clipped loss and metrics of each token, all (b, t) and 0 where a target is IGNORE.

    `extra` and the metrics, which have no gradient: see PolicyLoss.
    """
    mask = targets != IGNORE
    log_probs, entropy = log_probs_and_entropy(outputs, targets, temperature=temperature)
    old, advantages = (extra[name].where(mask, 0.0) for name in ("old_log_probs", "advantages"))
    log_ratio = log_probs - old
    ratio = log_ratio.exp()
    losses, clipped = clipped_policy_loss(ratio, advantages, low=low, high=high)
    with torch.no_grad():
        numbers = {
            "clip_fraction": clipped,
            "ratio_error": (ratio - 1).abs(),
            "update_kl": ratio - 1 - log_ratio,
            "entropy": entropy,
        }
    return log_probs, losses, numbers


@dataclass(frozen=True)
class PolicyLoss:
    """PPO's clipped loss of a policy: `batch.extra` has `old_log_probs` and `advantages`, both (n, t).

    Targets are IGNORE except at response tokens. `temperature` must be the sampler's. Metrics, as sums over response
    tokens: `clip_fraction`; `ratio_error`, |ratio - 1|, exactly 0 before the first update; `update_kl`, from the old
    policy to this one (k3); `entropy`.
    """

    clip: float = 0.2
    temperature: float = 1.0
    metric_names = evaluation_names = ("clip_fraction", "ratio_error", "update_kl", "entropy")

    def __call__(self, outputs: VocabularyOutputs, batch: Batch) -> LossTotals:
        targets = counted_targets(batch)
        _, losses, numbers = policy_terms(
            outputs, targets, batch.extra, low=self.clip, high=self.clip, temperature=self.temperature
        )
        total = losses.sum()
        metrics = {name: x.sum() for name, x in numbers.items()}
        return LossTotals(total, (targets != IGNORE).sum(), total.detach(), metrics)

    def values(self, outputs: VocabularyOutputs, batch: Batch) -> Tensor:
        """The log-probability of each response token, (b, t): the `old_log_probs` of an update."""
        return token_log_probs(outputs, counted_targets(batch), temperature=self.temperature)


@dataclass(frozen=True)
class ValueLoss:
    """Squared error of a critic: `batch.extra` has `returns` and `old_values`, both (n, t).

    Targets are IGNORE except at response tokens. With `mean`, a value is the mean of the head's output at all tokens of
    the text so far, as in a reward model with `pool = "mean"`. The metric `value_clip_fraction` is a sum over response
    tokens.
    """

    clip: float | None = 0.2
    mean: bool = False
    metric_names = evaluation_names = ("value_clip_fraction",)

    def __call__(self, outputs: Tensor, batch: Batch) -> LossTotals:
        mask = counted_targets(batch) != IGNORE
        old_values, returns = (batch.extra[name].where(mask, 0.0) for name in ("old_values", "returns"))
        losses, clipped = clipped_value_loss(self.values(outputs, batch), old_values, returns, clip=self.clip)
        total = losses.where(mask, 0.0).sum()
        return LossTotals(total, mask.sum(), total.detach(), {"value_clip_fraction": (clipped & mask).sum()})

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The value at each position, (b, t), in at least fp32."""
        values = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # (b, t, 1)
        return (mean_over_text(values, batch.positions) if self.mean else values)[..., 0]

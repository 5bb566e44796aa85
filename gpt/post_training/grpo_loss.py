"""The loss of GRPO (arXiv 2402.03300, equation 3): PPO's clipped policy loss with a KL penalty and no critic."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpt.losses.base import LossTotals, VocabularyOutputs
from gpt.losses.batch import Batch, counted_targets
from gpt.losses.marks import IGNORE
from gpt.losses.token_log_probs import token_log_probs
from gpt.post_training.kl import kl_estimate
from gpt.post_training.ppo_loss import PolicyLoss, policy_terms


@dataclass(frozen=True)
class GroupPolicyLoss:
    """`batch.extra` has `old_log_probs`, `advantages` and, unless `beta` is 0, `reference_log_probs`, all (n, t).

    Each row is one response, or each segment of a packed batch's one row. `average`: "response" gives each response the
    same weight, as GRPO's paper does; "token" each token, as DAPO (2503.14476) does. The count is the number of
    responses or of tokens. Targets, `temperature` and metrics are those of PolicyLoss, and `kl` (k3). Metrics are
    averaged in the same way as the loss.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    average: Literal["response", "token"] = "response"
    temperature: float = 1.0

    @property
    def metric_names(self) -> tuple[str, ...]:
        return (*PolicyLoss.metric_names, *(("kl",) if self.beta else ()))

    @property
    def evaluation_names(self) -> tuple[str, ...]:
        return self.metric_names

    def __call__(self, outputs: VocabularyOutputs, batch: Batch) -> LossTotals:
        targets = counted_targets(batch)
        mask = targets != IGNORE
        log_probs, losses, numbers = policy_terms(
            outputs, targets, batch.extra, low=self.clip_low, high=self.clip_high, temperature=self.temperature
        )
        if self.beta:
            kl = kl_estimate(log_probs, batch.extra["reference_log_probs"], mask, estimator="k3")
            losses, numbers["kl"] = losses + self.beta * kl, kl
        weights, count = self._weights(mask, batch.segment_ids)
        total = (losses * weights).sum()
        metrics = {name: (x.detach() * weights).sum() for name, x in numbers.items()}
        return LossTotals(total, count, total.detach(), metrics)

    def values(self, outputs: VocabularyOutputs, batch: Batch) -> Tensor:
        """The log-probability of each response token, (b, t)."""
        return token_log_probs(outputs, counted_targets(batch), temperature=self.temperature)

    def _weights(self, mask: Tensor, segment_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weight of each token in the sum (b, t), 0 outside the mask, and the count."""
        if self.average == "token":
            return mask.float(), mask.sum()
        if segment_ids is None:
            lengths = mask.sum(1, keepdim=True)
            return mask / lengths.clamp(min=1), (lengths > 0).sum()
        assert len(mask) == 1, "segments of one row"
        of_segment = torch.bincount(segment_ids[mask], minlength=1)  # (number of responses,)
        return mask / of_segment[segment_ids.where(mask, 0)].clamp(min=1), (of_segment > 0).sum()

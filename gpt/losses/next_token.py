"""Next-token cross-entropy computed with the head, a chunk of tokens at a time; never holds all logits at once.

A loss returns a sum and a count, never a mean: a mean of means would depend on how a batch is split.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.losses.base import IGNORE, Loss, LossTotals, VocabShard
from gpt.losses.linear_cross_entropy import Exponentials, _exponentials_in_place, _LinearCrossEntropy


def next_token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shard: VocabShard,
    *,
    z_loss: float = 0.0,
    in_place: Exponentials | None = None,
) -> LossTotals:
    """Cross-entropy of `targets` (b, t) under the logits hidden @ weight.T; padding rows of the head get no
    probability, IGNORE targets no loss. Communicates only through `shard`, 2 reductions a chunk. `in_place`: see
    `loss_for`.

    Where gradients are computed, the sum has `z_loss` * log^2 Z beside each token's cross-entropy, Z what its softmax
    divides by (PaLM, section 5: 1e-4); the loss that is reported has not.
    """
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)  # (n, d), (n,)
    if not torch.is_grad_enabled():  # which the function below is not told of: it would compute gradients
        hidden, weight, z_loss = hidden.detach(), weight.detach(), 0.0
    total, reported, penalty = _LinearCrossEntropy.apply(hidden, weight, targets, shard, z_loss, in_place)  # type: ignore[no-untyped-call]
    return LossTotals(total, (targets != IGNORE).sum(), reported, {"z_loss": penalty} if z_loss else {})


@dataclass(frozen=True)
class NextTokenLoss:
    """`next_token_loss` with its settings, as engines take it."""

    z_loss: float = 0.0
    in_place: Exponentials | None = None  # see loss_for

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("z_loss",) if self.z_loss else ()

    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor, shard: VocabShard) -> LossTotals:
        return next_token_loss(hidden, weight, targets, shard, z_loss=self.z_loss, in_place=self.in_place)


def loss_for(*, compile: bool, z_loss: float = 0.0) -> Loss:
    """The loss with what it does to logits between the products compiled, or left to torch's kernels."""
    return NextTokenLoss(z_loss, torch.compile(_exponentials_in_place) if compile else None)

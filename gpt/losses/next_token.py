"""Next-token cross-entropy, computed together with the vocabulary head so that not all logits are in memory at once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.losses.base import Loss, LossTotals, VocabShard, VocabularyOutputs
from gpt.losses.batch import Batch, counted_rows, counted_targets
from gpt.losses.linear_cross_entropy import Exponentials, exponentials_in_place, linear_cross_entropy
from gpt.losses.marks import IGNORE
from gpt.losses.token_log_probs import token_log_probs


def next_token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shard: VocabShard,
    *,
    z_loss: float = 0.0,
    in_place: Exponentials | None = None,
    few_counted: bool = False,
) -> LossTotals:
    """Cross-entropy of `targets` (b, t) under the logits hidden @ weight.T, in nats.

    hidden (b, t, d); weight (v, d). Padding rows of the head get no probability; IGNORE targets add no loss. It
    communicates only through `shard`: 2 reductions a chunk. `in_place`, `few_counted`: see `loss_for`.

    With gradients, `sum` also contains `z_loss` * log^2 Z of each token, Z being the softmax denominator (PaLM, arXiv
    2204.02311, section 5, uses 1e-4). `reported` never contains it.
    """
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)  # (n, d), (n,)
    if not torch.is_grad_enabled():  # the autograd function cannot see this and would compute gradients
        hidden, weight, z_loss = hidden.detach(), weight.detach(), 0.0
    rows = counted_rows(targets) if few_counted else None
    if rows is not None:  # the head runs on these tokens alone
        hidden, targets = hidden.index_select(0, rows), targets[rows]
    total, reported, penalty = linear_cross_entropy(hidden, weight, targets, shard, z_loss=z_loss, in_place=in_place)
    return LossTotals(total, (targets != IGNORE).sum(), reported, {"z_loss": penalty} if z_loss else {})


@dataclass(frozen=True)
class NextTokenLoss:
    """`next_token_loss` with its settings, in the form that engines call."""

    z_loss: float = 0.0
    in_place: Exponentials | None = None  # see loss_for
    few_counted: bool = False  # see loss_for

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("z_loss",) if self.z_loss else ()

    @property
    def evaluation_names(self) -> tuple[str, ...]:
        return ()

    def __call__(self, outputs: VocabularyOutputs, batch: Batch) -> LossTotals:
        return next_token_loss(
            outputs.hidden,
            outputs.weight,
            counted_targets(batch),
            outputs.shard,
            z_loss=self.z_loss,
            in_place=self.in_place,
            few_counted=self.few_counted,
        )

    def perplexity(self, mean: float) -> float:
        """e^mean, finite; see TokenLikelihood."""
        return math.exp(min(mean, 700.0))

    def values(self, outputs: VocabularyOutputs, batch: Batch) -> Tensor:
        """The log-probability of each target in nats, (b, t); see TokenValues."""
        return token_log_probs(outputs, counted_targets(batch))


def loss_for(*, compile: bool, z_loss: float = 0.0, few_counted: bool = False) -> Loss:
    """The loss; with `compile`, torch's compiler fuses the elementwise work on logits into one in-place loop.

    `few_counted`: many targets are IGNORE, so a CPU does better to leave them out first.
    """
    return NextTokenLoss(z_loss, torch.compile(exponentials_in_place) if compile else None, few_counted)

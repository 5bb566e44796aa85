"""How well a model predicts held-out tokens, and how well knowing nothing but token frequencies would; never trains."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gpt.generation import Model, as_model
from gpt.model import GPT

Tokens = NDArray[np.int64]


class ValidationLoss(NamedTuple):
    """The mean over `tokens` predicted tokens."""

    nats_per_token: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e to the loss; infinite where that is no float."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf


@torch.inference_mode()
def validation_loss(model: GPT | Model, batches: Iterable[Tokens]) -> ValidationLoss:
    """The loss over batches (n, seq_len + 1) of token ids: each row predicts its tokens but the first.

    The same forward pass as in training, on the model's device and in its dtype. Every rank of a layout passes all
    batches; data ranks take them in turns, and all have the result.
    """
    asked = as_model(model)
    total, count = 0.0, 0
    for number, batch in enumerate(batches):
        if number % asked.data_size != asked.data_rank:
            continue
        tokens = torch.from_numpy(batch).to(asked.device)  # (n, t + 1)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()
        log_probs, _ = asked.log_probs(
            inputs,
            earlier=0,
            positions=torch.arange(inputs.size(1), device=asked.device).unsqueeze(0),
            mask=None,
            cache=None,
            places=torch.arange(inputs.numel(), device=asked.device),
            targets=targets,
        )
        total -= float(log_probs.double().sum())
        count += targets.numel()
    totals = [of_rank for theirs in asked.gather([(total, count)]) for of_rank in theirs]
    total, count = sum(loss for loss, _ in totals), sum(n for _, n in totals)
    return ValidationLoss(total / count if count else math.nan, count)


@dataclass(frozen=True)
class TokenCounts:
    """How often each token id was to be predicted, (vocab_size,)."""

    counts: NDArray[np.int64]

    @property
    def entropy_nats(self) -> float:
        """The loss of a model that predicts these very frequencies every time: what training must get below."""
        seen = self.counts[self.counts > 0]
        share = seen / seen.sum()
        return float(-(share * np.log(share)).sum())


def count_targets(batches: Iterable[Tokens], vocab_size: int) -> TokenCounts:
    """Counts of the tokens that `validation_loss` would predict in these batches."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for batch in batches:
        counts += np.bincount(batch[:, 1:].ravel(), minlength=vocab_size)
    return TokenCounts(counts)

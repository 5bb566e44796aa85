"""How well a model predicts held-out tokens, and how well knowing nothing but token frequencies would; never trains."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gpt.loss import next_token_loss, whole_vocabulary
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
def validation_loss(model: GPT, batches: Iterable[Tokens]) -> ValidationLoss:
    """The loss over batches (n, seq_len + 1) of token ids: each row predicts its tokens but the first.

    The same forward pass and loss as in training, on the model's device and in its dtype.
    """
    head = model.head
    assert head is not None
    shard = whole_vocabulary(model.vocab_size)
    device = head.weight.device
    total, count = 0.0, 0
    for batch in batches:
        tokens = torch.from_numpy(batch).to(device)  # (n, t + 1)
        hidden = model.hidden_states(tokens[:, :-1])  # (n, t, d)
        totals = next_token_loss(hidden, head.weight, tokens[:, 1:], shard)
        total += float(totals.sum)
        count += int(totals.count)
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

"""Fit heads that choose the tokens of a text which they read, on the token states of a frozen trunk.

Query h gives token t of a text the weight softmax_t(query_h . x_t), where x is standardised. The logit of a category is
linear in the weighted means of all queries. The mean over all tokens hides a few telling words in a long text; these
heads find them. AdamW, the learning rate rises over 10% of the steps and falls to 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.errors import ConfigError
from gpt.moderation.frozen.linear_heads import Floats, known_labels

# The first token of a text draws most of the attention, and has components of hundreds in some channels. Unclipped,
# they would set the deviation of these channels, and hide what other tokens say there.
_CLIP = 60.0


@dataclass(frozen=True)
class PoolingSettings:
    """`n_queries` queries shared by all categories; `epochs` passes over the texts, in batches of `batch_texts`."""

    n_queries: int = 8
    epochs: int = 4
    batch_texts: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        usual = {"n_queries": 8, "epochs": 4, "batch_texts": 32, "learning_rate": 2e-3}
        for name, value in usual.items():
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name):g} is invalid: must be above 0. Use {value:g}")


class PooledHeads(nn.Module):
    """Logits (b, c) from the token states (b, t, d) of texts of `lengths` (b,) tokens; padding is behind each text."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, mean: Tensor, deviation: Tensor, n_queries: int, n_categories: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.query = nn.Parameter(torch.zeros(n_queries, len(mean)))  # the first stays near the plain mean
        self.value = nn.Parameter(torch.zeros(n_queries, len(mean), n_categories))
        self.bias = nn.Parameter(torch.zeros(n_categories))
        nn.init.normal_(self.query[1:].detach(), std=0.02, generator=generator)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        x = states.clamp(-_CLIP, _CLIP).float()
        outside = torch.arange(x.size(1), device=x.device) >= lengths.unsqueeze(1)
        # The means are standardised rather than the tokens, which are far more: softmax ignores the shift of a query,
        # and weights have the sum 1.
        scores = x @ (self.query / self.deviation).T  # (b, t, h)
        weights = scores.masked_fill(outside.unsqueeze(-1), float("-inf")).softmax(1)
        means = (weights.transpose(1, 2) @ x - self.mean) / self.deviation  # (b, h, d)
        logits: Tensor = means.flatten(1) @ self.value.flatten(0, 1) + self.bias
        return logits


def fit_attention_pooling(
    states: Sequence[Tensor], labels: Floats, ids: Sequence[str], settings: PoolingSettings | None = None
) -> PooledHeads:
    """Fit the heads of the categories `ids` to the token states of n texts, each (t, d), and to their labels (n, c):
    1, 0, NaN where unknown, which has no loss.

    ConfigError: a category lacks a positive or a negative label, or a text has no token.
    """
    settings = settings or PoolingSettings()
    for category, column in zip(ids, labels.T, strict=True):
        known_labels(category, column, None)
    if not all(map(len, states)):
        raise ConfigError("a text without a token is invalid: attention needs one. Give it the end-of-document token")
    generator = torch.Generator().manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    heads = PooledHeads(*_mean_and_deviation(states), settings.n_queries, len(ids), generator)
    others = {"params": [heads.query, heads.bias], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(
        [{"params": [heads.value], "weight_decay": settings.weight_decay}, others], lr=settings.learning_rate
    )
    known = torch.from_numpy(~np.isnan(labels))
    target = torch.from_numpy(np.nan_to_num(labels)).float()
    n_batches = -(-len(states) // settings.batch_texts)
    total = settings.epochs * n_batches
    for step in range(total):
        if step % n_batches == 0:
            batches = _batches([len(one) for one in states], settings.batch_texts, rng)
        scale = min((step + 1) / (0.1 * total), (total - step) / (0.9 * total), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * scale
        rows = batches[step % n_batches]
        logits = heads(*_padded([states[i] for i in rows]))
        losses = functional.binary_cross_entropy_with_logits(logits, target[rows], reduction="none")
        optimizer.zero_grad()
        torch.autograd.backward((losses * known[rows]).sum() / known[rows].sum().clamp(min=1))
        optimizer.step()
    return heads


@torch.inference_mode()
def pooled_logits(heads: PooledHeads, states: Sequence[Tensor], *, batch_texts: int = 32) -> Floats:
    """The logits (n, c) of texts from their token states, each (t, d), without a parents' maximum."""
    order = sorted(range(len(states)), key=lambda i: len(states[i]))
    found = np.zeros((len(states), len(heads.bias)))
    for start in range(0, len(order), batch_texts):
        rows = order[start : start + batch_texts]
        found[rows] = heads(*_padded([states[i] for i in rows])).double().numpy()
    return found


def _mean_and_deviation(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Of each component over the tokens of all texts, (d,) each. A component that never varies has deviation 1."""
    sums, n = torch.zeros(2, states[0].size(1), dtype=torch.float64), 0
    for one in states:
        x = one.float().clamp(-_CLIP, _CLIP)
        sums[0] += x.sum(0)
        sums[1] += x.square().sum(0)
        n += len(x)
    mean = sums[0] / n
    deviation = (sums[1] / n - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(deviation > 1e-6, deviation, 1.0).float()


def _padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The states (b, t, d) of texts and their lengths (b,)."""
    lengths = torch.tensor([len(one) for one in states])
    return nn.utils.rnn.pad_sequence(list(states), batch_first=True), lengths


def _batches(lengths: Sequence[int], size: int, rng: np.random.Generator) -> list[list[int]]:
    """Batches in random order. Of each 4 * size random texts, those of about equal length come together."""
    order, batches = rng.permutation(len(lengths)), []
    for start in range(0, len(order), 4 * size):
        part = sorted(order[start : start + 4 * size].tolist(), key=lambda i: lengths[i])
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return [batches[i] for i in rng.permutation(len(batches))]

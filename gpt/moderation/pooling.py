"""How the outputs of a head at the tokens of a text become those of the text.

Shapes: b rows, t positions, k outputs, q queries, c categories.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from gpt.losses.text_mean import mean_over_text
from gpt.losses.text_softmax import softmax_over_text

PoolKind = Literal["last", "mean", "attention"]


class Pooling(Protocol):
    """The outputs of a text from those of its tokens."""

    @property
    def needs_whole_text(self) -> bool:
        """False: the outputs of a text are those of its last token."""
        ...

    def __call__(self, outputs: Tensor, positions: Tensor | None) -> Tensor:
        """At each position (b, t, ...) the outputs of the text up to it, from those of tokens (b, t, k).

        `positions` (b, t) count from 0 in each text, or in the row if None.
        """
        ...

    def of_rows(self, outputs: Tensor, kept: Tensor) -> Tensor:
        """As `__call__`, at the ends (b, ...) of rows with one text each. `kept` (b, t): 1 at its tokens, 0 behind."""
        ...


@dataclass(frozen=True)
class LastToken:
    """Those of the last token."""

    needs_whole_text: ClassVar[bool] = False

    def __call__(self, outputs: Tensor, positions: Tensor | None) -> Tensor:
        return outputs

    def of_rows(self, outputs: Tensor, kept: Tensor) -> Tensor:
        rows, columns = (torch.arange(size, device=outputs.device) for size in outputs.shape[:2])
        return outputs[rows, (kept * columns).argmax(-1)]


LAST_TOKEN = LastToken()


@dataclass(frozen=True)
class MeanOverText:
    """The means over all tokens."""

    needs_whole_text: ClassVar[bool] = True

    def __call__(self, outputs: Tensor, positions: Tensor | None) -> Tensor:
        return mean_over_text(outputs, positions)

    def of_rows(self, outputs: Tensor, kept: Tensor) -> Tensor:
        weights = kept.unsqueeze(-1).double()
        return ((outputs * weights).sum(1) / weights.sum(1)).to(outputs.dtype)


@dataclass(frozen=True)
class AttentionOverText:
    """Means weighted by softmax, of queries that learn which tokens to read.

    `outputs` (b, t, q + q * c) have the scores of the queries, then c values for each query. The logit of a category is
    the sum over queries h and tokens t of softmax_t(score_h) value_h. A further output, the critic's, is averaged.
    With linear values this is the formula of gpt.moderation.frozen.attention_pooling.
    """

    n_queries: int
    n_categories: int
    needs_whole_text: ClassVar[bool] = True

    def __call__(self, outputs: Tensor, positions: Tensor | None) -> Tensor:
        scores, values, others = self._parts(outputs)
        return torch.cat((softmax_over_text(scores, values, positions), mean_over_text(others, positions)), dim=-1)

    def of_rows(self, outputs: Tensor, kept: Tensor) -> Tensor:
        scores, values, others = self._parts(outputs)
        weights = scores.double().masked_fill(kept.unsqueeze(-1) == 0, -torch.inf).softmax(1)
        sums = (weights.unsqueeze(-1) * values).sum((1, 2)).to(outputs.dtype)
        return torch.cat((sums, MeanOverText().of_rows(others, kept)), dim=-1)

    def _parts(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        end = self.n_queries * (1 + self.n_categories)
        values = outputs[..., self.n_queries : end].reshape(*outputs.shape[:-1], self.n_queries, self.n_categories)
        return outputs[..., : self.n_queries], values, outputs[..., end:]


def pooling_of(kind: PoolKind, *, n_queries: int, n_categories: int) -> Pooling:
    """The pooling of `objective.pool`. The numbers are those of attention."""
    if kind == "attention":
        return AttentionOverText(n_queries, n_categories)
    return MeanOverText() if kind == "mean" else LAST_TOKEN

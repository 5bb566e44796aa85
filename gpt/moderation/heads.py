"""The heads of a classifier: a logit for each category from the hidden state of a text's last token.

Shapes: b rows, t positions, d = d_model, c categories, h the width of a hidden layer.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.model.dropout import BlockDropout
from gpt.model.heads import wide_linear
from gpt.moderation.wdat import Critic

HeadKind = Literal["mlp", "shared_mlp", "linear"]


class CategoryHead(nn.Module):
    """Logits (b, t, c) of all positions, in at least fp32; with a critic (b, t, c + 1), its value last.

    One MLP a category [d, h, 1] (arXiv 2208.03274, appendix A.2), one hidden layer for all, or a linear layer. The MLPs
    are held together: category i has the rows i * h to (i + 1) * h of `up`. GELU in its tanh form is between.
    """

    def __init__(
        self,
        d_model: int,
        n_categories: int,
        *,
        kind: HeadKind = "mlp",
        hidden: int = 256,
        dropout: float = 0.0,
        critic: Critic | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.n_categories, self.dropout_rate = kind, n_categories, dropout
        if kind == "linear":
            self.classes = nn.Linear(d_model, n_categories)
        else:
            self.up = nn.Linear(d_model, hidden * (n_categories if kind == "mlp" else 1))
            self.down = nn.Linear(hidden, n_categories)
        self.critic = critic

    def forward(self, hidden: Tensor, dropout: BlockDropout | None = None) -> Tensor:
        """(b, t, c or c + 1) from (b, t, d). `dropout` drops elements of the hidden layer, or of a linear head's
        input."""
        logits = self._logits(hidden, dropout)
        return logits if self.critic is None else torch.cat((logits, self.critic(hidden)), dim=-1)

    def _logits(self, x: Tensor, dropout: BlockDropout | None) -> Tensor:
        if self.kind == "linear":
            return wide_linear(_dropped(x, dropout), self.classes)
        y = _dropped(functional.gelu(wide_linear(x, self.up), approximate="tanh"), dropout)  # (b, t, h or c * h)
        if self.kind == "shared_mlp":
            return wide_linear(y, self.down)
        y = y.view(*y.shape[:-1], self.n_categories, -1)  # (b, t, c, h)
        return (y * self.down.weight.to(y.dtype)).sum(-1) + self.down.bias.to(y.dtype)


def constrained(logits: Tensor, parents: Sequence[int], known: Tensor | None = None) -> Tensor:
    """Logits (..., c) in which each category has at least those of its children.

    `parents`: the position of each category's parent, -1 without one. With `known` (..., c), as for a loss, a child
    whose label is unknown is left out of the maximum: it learns nothing, and does not keep its parent from learning.
    """
    columns = list((logits if known is None else logits.where(known, -torch.inf)).unbind(-1))
    for child in _children_first(parents):
        parent = parents[child]
        columns[parent] = torch.maximum(columns[parent], columns[child])
    found = torch.stack(columns, dim=-1)
    return found if known is None else found.where(known, logits)


def _children_first(parents: Sequence[int]) -> list[int]:
    """The categories with a parent, each after its own children."""

    def depth(category: int) -> int:
        return 0 if parents[category] < 0 else 1 + depth(parents[category])

    return sorted((child for child in range(len(parents)) if parents[child] >= 0), key=depth, reverse=True)


def _dropped(x: Tensor, dropout: BlockDropout | None) -> Tensor:
    return x if dropout is None else dropout(x, 0)

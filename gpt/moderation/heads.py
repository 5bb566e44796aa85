"""The heads of a classifier: a logit for each category from the hidden state of each token.

Shapes: b rows, t positions, d = d_model, c categories, h the width of a hidden layer, q queries of attention pooling.
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

    With queries, the outputs are (b, t, q + q * c): the scores of the queries, linear in the hidden state and never
    dropped, then c values for each query. gpt.moderation.pooling makes them the logits of a text.
    """

    def __init__(
        self,
        d_model: int,
        n_categories: int,
        *,
        kind: HeadKind = "mlp",
        hidden: int = 256,
        dropout: float = 0.0,
        n_queries: int = 0,
        critic: Critic | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.n_categories, self.dropout_rate = kind, n_categories, dropout
        n_values = n_categories * max(1, n_queries)
        self.query = nn.Linear(d_model, n_queries, bias=False) if n_queries else None
        if kind == "linear" and n_queries:
            self.values = nn.Linear(d_model, n_values)  # starts at 0: the sum over queries of random ones is large
        elif kind == "linear":
            self.classes = nn.Linear(d_model, n_values)
        else:
            self.up = nn.Linear(d_model, hidden * (n_categories if kind == "mlp" else 1))
            self.down = nn.Linear(hidden, n_values)
        self.critic = critic

    def forward(self, hidden: Tensor, dropout: BlockDropout | None = None) -> Tensor:
        """(b, t, c), with queries (b, t, q + q * c), and one more with a critic, from (b, t, d). `dropout` drops
        elements of the hidden layer, or of a linear head's input."""
        outputs = self._values(hidden, dropout)
        if self.query is not None:
            outputs = torch.cat((wide_linear(hidden, self.query), outputs), dim=-1)
        return outputs if self.critic is None else torch.cat((outputs, self.critic(hidden)), dim=-1)

    def _values(self, x: Tensor, dropout: BlockDropout | None) -> Tensor:
        if self.kind == "linear":
            return wide_linear(_dropped(x, dropout), self.classes if self.query is None else self.values)
        y = _dropped(functional.gelu(wide_linear(x, self.up), approximate="tanh"), dropout)  # (b, t, h or c * h)
        if self.kind == "shared_mlp":
            return wide_linear(y, self.down)
        y = y.view(*y.shape[:-1], self.n_categories, -1)  # (b, t, c, h)
        of_queries = self.down.weight.to(y.dtype).view(-1, self.n_categories, y.size(-1))  # (1 or q, c, h)
        return torch.cat([(y * weight).sum(-1) for weight in of_queries], dim=-1) + self.down.bias.to(y.dtype)


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

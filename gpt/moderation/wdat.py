"""Wasserstein distance guided domain adversarial training, WDAT (arXiv 2208.03274, section 3.4).

    min over z, c of L_c + lambda * max over d of |E_source f_d(f_z(x)) - E_target f_d(f_z(x))|

A critic f_d looks at the representation f_z(x) of texts, and learns to give those of the source domain (with labels)
larger values than those of the target domain (without). The trunk learns to bring both means together.

One backward pass and one optimizer do both, by a reversed gradient: the loss has the term -distance, so the critic
climbs, and the gradient that leaves the critic for the trunk is multiplied by -lambda, so the trunk descends. Two
alternating optimizers would need a second pass through the trunk each step. The absolute value is left out: the
critic's last layer can change its sign, so the maximum is the same, and the difference of two means is not biased by
the size of a batch.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.model.heads import wide_linear

PREFIX = "head.critic."  # of the critic's parameters in the whole model


class Critic(nn.Module):
    """d_model -> h -> h -> 1 with ReLU, at least fp32. Its gradient to the input is multiplied by -`weight`."""

    def __init__(self, d_model: int, *, hidden: int, weight: float) -> None:
        super().__init__()
        self.weight_of_trunk = weight
        self.first, self.second = nn.Linear(d_model, hidden), nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Values (b, t, 1) of representations (b, t, d)."""
        y: Tensor = _Reversed.apply(x, self.weight_of_trunk)  # type: ignore[no-untyped-call]
        for layer in (self.first, self.second):
            y = functional.relu(wide_linear(y, layer))
        return wide_linear(y, self.value)


class _Reversed(torch.autograd.Function):
    """The identity. Backward multiplies the gradient by -`weight`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


def domain_distance(values: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The mean of the critic's `values` over `source` less that over `target`, 0-d; all (b, t), the last two bool.

    0 unless there are texts of both domains.
    """
    of_source = torch.where(source, values, 0).sum() / source.sum().clamp(min=1)
    of_target = torch.where(target, values, 0).sum() / target.sum().clamp(min=1)
    return torch.where(source.any() & target.any(), of_source - of_target, 0)


def clip_critic(parameters: Iterable[tuple[str, Tensor]], limit: float) -> None:
    """Keep the critic's weights within +-limit, so that its slope is bounded (WGAN, arXiv 1701.07875)."""
    for name, parameter in parameters:
        if name.startswith(PREFIX):
            parameter.clamp_(-limit, limit)

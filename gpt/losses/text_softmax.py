"""Running softmax-weighted sums of the values of tokens over their text, by several queries.

Shapes: b rows, t positions, q queries, k values.
"""

import torch
from torch import Tensor
from torch.nn import functional


def softmax_over_text(scores: Tensor, values: Tensor, positions: Tensor | None) -> Tensor:
    """At each position the sum over queries of the means (b, t, k) of the text up to it, weighted by softmax.

    `scores` (b, t, q) give the weights, and `values` (b, t, q, k) are weighted. `positions` (b, t) count from 0 in each
    text, or in the row if None. The result has the dtype of `values`; the sums are in float64.

    Each position takes in the sums of the 1, 2, 4, ... tokens before it, and rescales both to the larger of their
    largest scores. So the weights of a position have a sum of at least 1, whatever the scores, and no text reads
    another. Takes log2(t) additions, in an order that depends on nothing else.
    """
    length = scores.size(1)
    if positions is None:
        positions = torch.arange(length, device=scores.device).expand(scores.shape[:2])
    wide = scores.double()
    highest = wide.detach()  # of the tokens in `sums`. The result does not depend on it, so it needs no gradient
    weights = (wide - highest).exp().unsqueeze(-1)  # 1, with the gradient of the scores
    sums = torch.cat((weights, weights * values.double()), dim=-1)  # (b, t, q, 1 + k)
    step = 1
    while step < length:
        inside = (positions >= step).unsqueeze(-1)
        before = _shifted(highest, step).where(inside, -torch.inf)
        both = torch.maximum(highest, before)
        added = _shifted(sums, step) * (before - both).exp().unsqueeze(-1)
        sums = sums * (highest - both).exp().unsqueeze(-1) + added.where(inside.unsqueeze(-1), 0)
        highest, step = both, 2 * step
    return (sums[..., 1:] / sums[..., :1]).sum(2).to(values.dtype)


def _shifted(x: Tensor, step: int) -> Tensor:
    """`x` (b, t, ...) as it is `step` positions before, 0 in front."""
    return functional.pad(x[:, :-step], (0, 0) * (x.ndim - 2) + (step, 0))

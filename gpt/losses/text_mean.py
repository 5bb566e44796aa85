"""Running means of the values of tokens over their text: what a head says of a text that reads all its tokens."""

import torch
from torch import Tensor
from torch.nn import functional


def mean_over_text(values: Tensor, positions: Tensor | None) -> Tensor:
    """At each position the mean of the values (b, t, k) from the start of its text up to it.

    `positions` (b, t) count from 0 in each text, or in the row if None. The sums are in float64, since they are
    differences of sums over the row.
    """
    if positions is None:
        positions = torch.arange(values.size(1), device=values.device).expand(values.shape[:2])
    sums = functional.pad(values.double().cumsum(1), (0, 0, 1, 0))  # (b, t + 1, k)
    column = torch.arange(values.size(1), device=values.device)
    start = (column - positions).clamp(min=0).unsqueeze(-1).expand_as(values)
    of_text = sums[:, 1:] - sums.gather(1, start)
    return (of_text / (positions + 1).unsqueeze(-1)).to(values.dtype)

"""The numbers that all ranks add up in one all-reduce at the end of a step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepSums:
    """Sums over ranks: the squared gradient norm, the reported loss, the count of targets, the loss's metrics by name,
    and how many ranks raised each flag."""

    squared_norm: float
    loss: float
    count: float
    metrics: dict[str, float]
    raised: tuple[float, ...]

    @staticmethod
    def to_tensor(squared_norm: Tensor, totals: Tensor, raised: Sequence[bool]) -> Tensor:
        """This rank's share as one vector, float64, on the device of `squared_norm` (0-d).

        `totals` (2 + metrics,): loss, count and metrics.
        """
        flags = torch.tensor(raised, dtype=torch.float64, device=squared_norm.device)
        return torch.cat((squared_norm.view(1), totals, flags))

    @classmethod
    def from_tensor(cls, numbers: Tensor, *, metric_names: Sequence[str]) -> "StepSums":
        """The sums that the all-reduced vector holds. Waits for the device."""
        squared_norm, loss, count, *rest = numbers.tolist()
        n = len(metric_names)
        return cls(squared_norm, loss, count, dict(zip(metric_names, rest[:n], strict=True)), tuple(rest[n:]))

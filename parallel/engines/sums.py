"""The numbers that all ranks add up in one all-reduce at the end of a step or an evaluation, and their results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.training.engine import StepResult, Totals


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
        flags = torch.zeros(len(raised), dtype=torch.float64, device=squared_norm.device)
        for i in (i for i, is_raised in enumerate(raised) if is_raised):
            flags[i].fill_(1.0)  # torch.tensor(raised, device=...) would wait for a GPU
        return torch.cat((squared_norm.view(1), totals, flags))

    @classmethod
    def from_tensor(cls, numbers: Tensor, *, metric_names: Sequence[str]) -> "StepSums":
        """The sums that the all-reduced vector holds. Waits for the device."""
        squared_norm, loss, count, *rest = numbers.tolist()
        n = len(metric_names)
        return cls(squared_norm, loss, count, dict(zip(metric_names, rest[:n], strict=True)), tuple(rest[n:]))

    def result(self, norm: float) -> StepResult:
        """The result of a step whose gradient, divided by the count, has this norm. The first flag discards the step.

        All ranks have the same sums, so they take the same decision.
        """
        usable = self.count > 0 and math.isfinite(self.loss) and math.isfinite(norm)
        discarded, *raised = (n > 0 for n in self.raised)
        means = {name: value / max(self.count, 1.0) for name, value in self.metrics.items()}
        return StepResult(
            Totals(self.loss, int(self.count), means),
            norm,
            skipped=not usable and not discarded,
            discarded=discarded,
            flags=tuple(raised),
        )


def add_totals(totals: Sequence[Sequence[Tensor]], *, metrics: int, device: torch.device) -> Tensor:
    """Loss, number of targets and metrics of this rank's micro-batches, added up: (2 + metrics,) float64.

    Zeros without micro-batches. Of ranks that computed the same loss, only one may pass it.
    """
    if not totals:
        return torch.zeros(2 + metrics, dtype=torch.float64, device=device)
    return torch.stack([torch.stack([number.double() for number in numbers]) for numbers in totals]).sum(0)


def evaluation_totals(numbers: Tensor, *, names: Sequence[str]) -> Totals:
    """The result of an evaluation, from `add_totals` summed over all ranks. Waits for the device."""
    loss_sum, count, *metrics = numbers.tolist()
    means = {name: value / max(count, 1.0) for name, value in zip(names, metrics, strict=True)}
    return Totals(loss_sum, int(count), means)

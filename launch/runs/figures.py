"""The figures that the pages of a run draw of its metrics: titles, order, names in the legend, kinds of numbers."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Number = Literal["plain", "scientific", "count", "percent", "memory"]

OF_RANK = {  # metric of memory -> its name in a figure
    "peak_memory_bytes": "peak",
    "memory/resident_bytes": "resident",
    "memory/gpu_allocated_bytes": "GPU, tensors",
    "memory/gpu_reserved_bytes": "GPU, with torch's cache",
}
OF_MACHINE = "memory/machine_used_bytes"
_LABELS = {"loss": "training", **OF_RANK, OF_MACHINE: "in use", "step_tokens": "batch"}


@dataclass(frozen=True)
class RunFigure:
    """A figure of the metrics that match `pattern`. `from_zero`: its vertical axis starts at 0.

    `number`: how its values are written; memory is in GiB or MiB, chosen by its largest value.
    """

    title: str
    pattern: str
    number: Number = "plain"
    from_zero: bool = False

    def names(self, metrics: Iterable[str]) -> list[str]:
        """The metrics in the figure, in the order of its lines."""
        order = list(_LABELS)
        found = [name for name in metrics if re.fullmatch(self.pattern, name)]
        return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


RUN_FIGURES = (
    RunFigure("Loss, nats a token", r"loss|validation/.*/loss"),
    RunFigure("Gradient norm, before clipping", "gradient_norm"),
    RunFigure("Learning rate", "learning_rate", "scientific", from_zero=True),
    RunFigure("Tokens a second", "tokens_per_s", "count", from_zero=True),
    RunFigure("Model FLOP utilisation", "mfu", "percent", from_zero=True),
    RunFigure("Memory of the main rank", "|".join(OF_RANK), "memory", from_zero=True),
    RunFigure("Memory in use on its machine", OF_MACHINE, "memory", from_zero=True),
    RunFigure("Batch, tokens a step", "step_tokens", "count", from_zero=True),
    RunFigure("Goodput since the start of the run", "goodput", "percent", from_zero=True),
    RunFigure("Few-shot tasks", "few_shot/.*"),
)


def label_of(metric: str) -> str:
    """The metric's name in a legend."""
    return _LABELS.get(metric, metric.removesuffix("/loss") if metric.startswith("validation/") else metric)

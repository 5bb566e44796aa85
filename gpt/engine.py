"""What the training loop may ask of the hardware; parallel/engines/ has what answers."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor


class Batch(NamedTuple):
    """Token ids and what should follow each, both (n, t) int64 on the CPU."""

    inputs: Tensor
    targets: Tensor


class Totals(NamedTuple):
    """A loss summed over every rank, in nats, and the number of tokens in the sum."""

    loss_sum: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.loss_sum / self.tokens if self.tokens else float("nan")


class Engine(Protocol):
    """A model and its optimizer spread over processes. Every method must be called by every rank, in the same order.

    A rank feeds the sequences of its data rank: `data_rank` of `data_size`. Ranks that share a data rank (tensor
    and pipeline ranks) pass equal batches.
    """

    data_rank: int
    data_size: int
    is_main: bool  # the one rank that prints and writes metrics

    def forward_backward(self, batch: Batch) -> Totals:
        """Gradients of the loss of this step's whole batch, in micro-batches; the loss over all ranks."""
        ...

    def optimizer_step(self, learning_rate: float) -> float:
        """Clip the gradients to the configured global norm, update, clear; the norm before clipping."""
        ...

    def evaluate(self, batches: Iterable[Batch]) -> Totals:
        """The loss over batches, without gradients. All data ranks pass equally many batches of one shape."""
        ...

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, t, vocab_size) of token ids (n, t), on every rank of this data rank, without gradients."""
        ...

    def any(self, flag: bool) -> bool:
        """True when any rank passes True."""
        ...

    def save(self, directory: Path, *, step: int, state: dict[str, object], keep_last: int) -> Path:
        """Publish a checkpoint of weights, optimizer and `state` (JSON, equal on all ranks)."""
        ...

    def load(self, path: Path, *, verified: bool = False) -> dict[str, object]:
        """Weights and optimizer from a checkpoint of any layout; its state. `verified`: its digests are checked already."""
        ...

"""What an engine asks of any loss: a sum, a count and metrics, and the part of the vocabulary that a rank holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

IGNORE = -100  # a target that counts neither in the sum nor in the count


@dataclass(frozen=True)
class LossTotals:
    """`sum` in nats, 0-d with gradient: what a step lowers; `count` of what was summed, 0-d. Without gradient, 0-d:
    `reported`, the part of the sum that is called the loss, and `metrics`, further sums by name."""

    sum: Tensor
    count: Tensor
    reported: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class VocabShard:
    """Which rows of the head are held here, and how sums and maxima over all holders are taken."""

    start: int
    vocab_size: int  # of the whole vocabulary, padding left out
    max_rows: int  # of the holder with the most, so that all go through the tokens in the same chunks
    reduce_sum: Callable[[Tensor], Tensor]
    reduce_max: Callable[[Tensor], Tensor]


class Loss(Protocol):
    """What an engine needs of a loss."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The keys of `metrics` where gradients are computed, in order; ranks that compute no loss need them too."""
        ...

    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor, shard: VocabShard) -> LossTotals:
        """hidden (b, t, d), the head's rows held here (v, d), targets (b, t)."""
        ...


def whole_vocabulary(vocab_size: int) -> VocabShard:
    """The shard of a process that holds the whole head."""
    return VocabShard(start=0, vocab_size=vocab_size, max_rows=vocab_size, reduce_sum=_same, reduce_max=_same)


def _same(x: Tensor) -> Tensor:
    return x

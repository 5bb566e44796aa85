"""The interface of a loss: it returns a sum, a count and metrics, never a mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from gpt.losses.batch import Batch


@dataclass(frozen=True)
class LossTotals:
    """Sums over a micro-batch, all 0-d. A mean of means would depend on how a batch is split.

    `sum`, with gradient: what the optimizer minimises. `count`: how many targets were summed. Without gradient:
    `reported`, the part of the sum that is logged as the loss, and `metrics`, further sums by name.
    """

    sum: Tensor
    count: Tensor
    reported: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class VocabShard:
    """The rows of the vocabulary head that this process holds, and how to reduce over all holders."""

    start: int
    vocab_size: int  # of the whole vocabulary, without padding
    max_rows: int  # of the holder with the most rows: all holders go through the tokens in equal chunks
    reduce_sum: Callable[[Tensor], Tensor]
    reduce_max: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class VocabularyOutputs:
    """The factors of the logits `hidden @ weight.T` of a vocabulary head. The logits are too large to keep.

    hidden (b, t, d); weight (v, d), the rows that `shard` describes.
    """

    hidden: Tensor
    weight: Tensor
    shard: VocabShard


class Loss(Protocol):
    """The form of a loss that engines can run."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The keys of `metrics` in training, in order. Ranks that compute no loss need them too."""
        ...

    @property
    def evaluation_names(self) -> tuple[str, ...]:
        """The keys of `metrics` in evaluation, in order."""
        ...

    def __call__(self, outputs: Any, batch: Batch) -> LossTotals:
        """The loss of a micro-batch.

        It must count nothing where `batch.loss_mask` is False: evaluation pads its last batch with such rows. It must
        not read `batch.inputs`, which are empty here.

        `outputs`: VocabularyOutputs from a vocabulary head, (b, t, k) from other heads.
        """
        ...


@runtime_checkable
class TokenValues(Protocol):
    """A loss that also gives one number for each token; see Engine.token_values."""

    def values(self, outputs: Any, batch: Batch) -> Tensor:
        """(b, t) in at least fp32, from the arguments of a loss.

        Of a language model the log-probability of each target, 0 where the loss does not count; of a scalar head its
        output.
        """
        ...


@runtime_checkable
class SeveralValues(Protocol):
    """A loss with `n_values` numbers for each token, such as a logit for each category: its values are (b, t, c)."""

    @property
    def n_values(self) -> int:
        """c."""
        ...


@runtime_checkable
class OwnTokenValues(Protocol):
    """A loss that may need nothing but a token's own output for the value of that token."""

    @property
    def values_need_whole_text(self) -> bool:
        """False: `values` reads no other token's output, and of the batch nothing. True also for any other loss."""
        ...


@runtime_checkable
class TokenLikelihood(Protocol):
    """A loss whose mean over targets is the negative log-likelihood of a token, in nats."""

    def perplexity(self, mean: float) -> float:
        """e^mean, finite."""
        ...


@runtime_checkable
class ShownMetrics(Protocol):
    """A loss whose metrics of an evaluation are shown in another form, such as the ratios of two of them."""

    def shown(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The values to log. `metrics`: by `evaluation_names`, each divided by the count of the loss."""
        ...


def whole_vocabulary(vocab_size: int) -> VocabShard:
    """The shard of a process that holds the whole head."""
    return VocabShard(start=0, vocab_size=vocab_size, max_rows=vocab_size, reduce_sum=_same, reduce_max=_same)


def _same(x: Tensor) -> Tensor:
    return x

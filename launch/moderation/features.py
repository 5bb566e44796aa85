"""The trunk of a classifier without its head: the hidden state of each token, as values of an engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from gpt.data.sampling import CorpusFiles, Samples
from gpt.losses.base import Loss, LossTotals
from gpt.losses.batch import Batch
from gpt.losses.text_mean import mean_over_text
from gpt.model.attention import Mask
from gpt.model.config import ModelConfig
from gpt.model.heads import NoHead
from gpt.moderation.classifier import Classifier


@dataclass(frozen=True)
class TextFeatures:
    """A classifier's objective with no head, for `Engine.token_values`: (n, t, d). It trains nothing."""

    classifier: Classifier
    d_model: int
    streams: ClassVar[tuple[str, ...]] = ()
    optional_streams: ClassVar[tuple[str, ...]] = ()

    def batch(self, samples: Samples) -> Batch:
        return self.classifier.batch(samples)

    def check_corpus(self, files: CorpusFiles, model: ModelConfig) -> list[str]:
        return []

    def front(self, config: ModelConfig) -> nn.Module:
        return self.classifier.front(config)

    def head(self, config: ModelConfig) -> nn.Module:
        return NoHead()

    def loss(self, *, compile: bool) -> Loss:
        return HiddenStates(self.d_model, self.classifier.config.pool)

    def attention_mask(self, batch: Batch) -> Mask:
        return self.classifier.attention_mask(batch)

    def after_step(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        pass


@dataclass(frozen=True)
class HiddenStates:
    """A loss that only gives values: the normalised hidden states (b, t, d) in at least fp32.

    With `pool` mean, those at each position are the mean of the text up to it.
    """

    n_values: int
    pool: str = "last"
    metric_names: ClassVar[tuple[str, ...]] = ()
    evaluation_names: ClassVar[tuple[str, ...]] = ()

    @property
    def values_need_whole_text(self) -> bool:
        """See gpt.losses.base.OwnTokenValues."""
        return self.pool == "mean"

    def values(self, outputs: Any, batch: Batch) -> Tensor:
        hidden: Tensor = outputs
        hidden = hidden.float()
        return mean_over_text(hidden, batch.positions) if self.pool == "mean" else hidden

    def __call__(self, outputs: Any, batch: Batch) -> LossTotals:
        raise NotImplementedError("hidden states have no loss")

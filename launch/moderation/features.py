"""The trunk of a classifier without its head: the hidden state of each token, as values of an engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from gpt.data.sampling import CorpusFiles, Samples
from gpt.errors import ConfigError
from gpt.losses.base import Loss, LossTotals
from gpt.losses.batch import Batch
from gpt.model.attention import Mask
from gpt.model.config import ModelConfig
from gpt.model.heads import NoHead
from gpt.moderation.classifier import Classifier
from gpt.moderation.pooling import LAST_TOKEN, Pooling


@dataclass(frozen=True)
class TextFeatures:
    """A classifier's objective with no head, for `Engine.token_values`: (n, t, d). It trains nothing.

    ConfigError: attention pools its texts, so a text has no hidden state of its own.
    """

    classifier: Classifier
    d_model: int
    streams: ClassVar[tuple[str, ...]] = ()
    optional_streams: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.classifier.config.pool == "attention":
            raise ConfigError(
                "objective.pool = 'attention' is invalid here: its heads learn which tokens to read, so they cannot be "
                "fitted to one vector for each text. Train a new run with objective.pool = 'mean' for them"
            )

    def batch(self, samples: Samples) -> Batch:
        return self.classifier.batch(samples)

    def check_corpus(self, files: CorpusFiles, model: ModelConfig) -> list[str]:
        return []

    def front(self, config: ModelConfig) -> nn.Module:
        return self.classifier.front(config)

    def head(self, config: ModelConfig) -> nn.Module:
        return NoHead()

    def loss(self, *, compile: bool) -> Loss:
        return HiddenStates(self.d_model, self.classifier.config.pooling)

    def attention_mask(self, batch: Batch) -> Mask:
        return self.classifier.attention_mask(batch)

    def after_step(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        pass


@dataclass(frozen=True)
class HiddenStates:
    """A loss that only gives values: the normalised hidden states (b, t, d) in at least fp32.

    Those at each position are of the text up to it, by `pooling`.
    """

    n_values: int
    pooling: Pooling = LAST_TOKEN
    metric_names: ClassVar[tuple[str, ...]] = ()
    evaluation_names: ClassVar[tuple[str, ...]] = ()

    @property
    def values_need_whole_text(self) -> bool:
        """See gpt.losses.base.OwnTokenValues."""
        return self.pooling.needs_whole_text

    def values(self, outputs: Any, batch: Batch) -> Tensor:
        hidden: Tensor = outputs
        return self.pooling(hidden.float(), batch.positions)

    def __call__(self, outputs: Any, batch: Batch) -> LossTotals:
        raise NotImplementedError("hidden states have no loss")

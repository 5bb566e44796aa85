"""Supervised fine-tuning: predict the marked tokens of demonstrations (InstructGPT, arXiv 2203.02155, section 3.5)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from gpt.data.sampling import CorpusFiles, Samples
from gpt.errors import ConfigError
from gpt.losses.base import Loss
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE, PADDING
from gpt.losses.next_token import loss_for
from gpt.model.attention import Mask
from gpt.model.config import ModelConfig
from gpt.model.gpt import Embedding
from gpt.model.heads import VocabularyHead
from gpt.model.masks import document_mask
from gpt.training.objective import NextToken

LEARNED = "learned"  # the stream: 1 for a token that is learned, 0 for one that is only read


@dataclass(frozen=True)
class SFT:
    """Predict each learned token from those before it in its document.

    The loss of a step is the mean over all learned tokens of the global batch: each counts the same, whatever the
    micro-batches, the layout and the packing. `z_loss`: see gpt.losses.next_token.
    """

    z_loss: float = 0.0
    streams: ClassVar[tuple[str, ...]] = ()
    optional_streams: ClassVar[tuple[str, ...]] = (LEARNED,)

    def batch(self, samples: Samples) -> Batch:
        """The batch of NextToken without the targets that are not learned. Rows without the stream keep all targets."""
        _check_lengths(samples)
        batch = NextToken().batch(samples)
        learned = torch.from_numpy(samples.stream(LEARNED, default=1))[:, 1:]  # (n, t), of each target
        return replace(batch, targets=batch.targets.masked_fill(learned == 0, IGNORE))

    def check_corpus(self, files: CorpusFiles, model: ModelConfig) -> list[str]:
        found = NextToken().check_corpus(files, model)
        if LEARNED not in files.streams:
            found.append(f"corpus '{files.name}' has no stream '{LEARNED}': all of its tokens are learned")
        return found

    def front(self, config: ModelConfig) -> nn.Module:
        return Embedding(config)

    def head(self, config: ModelConfig) -> nn.Module:
        return VocabularyHead(config)

    def loss(self, *, compile: bool) -> Loss:
        return loss_for(compile=compile, z_loss=self.z_loss, few_counted=True)

    def attention_mask(self, batch: Batch) -> Mask:
        return document_mask(batch.segment_ids)

    def after_step(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        pass


def _check_lengths(samples: Samples) -> None:
    """Refuse a stream that is shorter or longer than its documents, which only sampling by document can read."""
    if samples.segment_ids is None or LEARNED not in samples.streams:
        return
    found, wanted = samples.stream_lengths[LEARNED], (samples.segment_ids != PADDING).sum(1)
    wrong = (found != wanted) & (found != 0)
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(
            f"stream '{LEARNED}' has {found[row]} tokens for a document of {wanted[row]}; write both from the same "
            f"documents: 1 where a token is learned, else 0"
        )

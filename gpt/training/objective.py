"""The objective of a run: its batches, the two ends of the model, the loss, and the attention mask.

An objective is a room of its own: it adds files and a line in launch/config/objectives.py, and no `if` anywhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

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


class Objective(Protocol):
    """The interface of an objective for the loop and the engines. All methods are pure, and equal on all ranks."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that `batch` reads. Every corpus of a run must have them."""
        ...

    @property
    def optional_streams(self) -> tuple[str, ...]:
        """Further streams that `batch` reads, with a default for corpora without them. At least one corpus to train on
        must have each."""
        ...

    def batch(self, samples: Samples) -> Batch:
        """The batch that a few samples make, one row a sample, on the CPU. All batches of a run have one shape."""
        ...

    def check_corpus(self, files: CorpusFiles, model: ModelConfig) -> list[str]:
        """Warnings about a corpus, for the log of the run. ConfigError if it does not fit the objective or the model.

        Each rank calls it at its start, for every corpus and before any process communicates.
        """
        ...

    def front(self, config: ModelConfig) -> nn.Module:
        """The model's start: `front(inputs, positions)` gives (b, t, d). It holds parameters and no buffers."""
        ...

    def head(self, config: ModelConfig) -> nn.Module:
        """The model's end, see gpt/model/heads.py."""
        ...

    def loss(self, *, compile: bool) -> Loss:
        """The loss of a micro-batch; `compile` has torch's compiler fuse what it can."""
        ...

    def attention_mask(self, batch: Batch) -> Mask:
        """The mask of a micro-batch, on its device; None is causal. It may read everything but `inputs`."""
        ...

    def after_step(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        """Called after each update with the names and local shards of the trainable parameters, without gradients.

        For a constraint, such as a clamp of one parameter. It must keep no state: a checkpoint would not hold it.
        """
        ...


@runtime_checkable
class MixtureObjective(Protocol):
    """An objective that needs certain corpora together."""

    def check_mixture(self, corpora: Sequence[CorpusFiles], *, rows: int) -> list[str]:
        """Warnings about the corpora to train on, after `check_corpus`. `rows`: of a micro-batch. ConfigError if the
        objective can learn nothing from them."""
        ...


@runtime_checkable
class ReferencedObjective(Protocol):
    """An objective whose loss also reads the values that a frozen copy of the starting model gives to each token."""

    def with_reference(self, batch: Batch, values: Tensor) -> Batch:
        """The batch with the reference's values (n, t), see Engine.token_values; on any device."""
        ...


@dataclass(frozen=True)
class NextToken:
    """Predict each token from those before it (GPT-3): samples are sequences, whether windows or whole documents.

    `z_loss`: see gpt.losses.next_token.
    """

    z_loss: float = 0.0
    streams: ClassVar[tuple[str, ...]] = ()
    optional_streams: ClassVar[tuple[str, ...]] = ()

    def batch(self, samples: Samples) -> Batch:
        """Inputs (n, t) and targets, one position further. Nothing is predicted across two documents that are kept
        apart by `segment_ids`, nor in padding."""
        tokens = torch.from_numpy(samples.tokens)  # (n, t + 1)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        if samples.segment_ids is None:
            return Batch(inputs, targets)
        ids = torch.from_numpy(samples.segment_ids)  # (n, t + 1)
        crosses = (ids[:, 1:] != ids[:, :-1]) | (ids[:, 1:] == PADDING)
        segment_ids = ids[:, :-1].contiguous()
        targets = targets.masked_fill(crosses, IGNORE)
        return Batch(inputs, targets, positions=positions_of(segment_ids), segment_ids=segment_ids)

    def check_corpus(self, files: CorpusFiles, model: ModelConfig) -> list[str]:
        """Refuse documents too short to predict a token. It compares totals: reading all lengths may take hours."""
        n_tokens, n_documents = files.tokens.n_tokens, files.tokens.n_documents
        if files.sampling.may_be_short and n_tokens <= n_documents:
            raise ConfigError(
                f"corpus '{files.name}': {n_tokens:,} tokens in {n_documents:,} documents are invalid for "
                f"data.sampling = 'document' or 'packed': a document needs at least 2 tokens to predict one. Use "
                f"data.sampling = 'window'"
            )
        return []

    def front(self, config: ModelConfig) -> nn.Module:
        return Embedding(config)

    def head(self, config: ModelConfig) -> nn.Module:
        return VocabularyHead(config)

    def loss(self, *, compile: bool) -> Loss:
        return loss_for(compile=compile, z_loss=self.z_loss)

    def attention_mask(self, batch: Batch) -> Mask:
        return document_mask(batch.segment_ids)

    def after_step(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        pass


def positions_of(segment_ids: Tensor) -> Tensor:
    """Positions (n, t) counted from 0 in each segment; 0 in padding."""
    length = segment_ids.size(1)
    index = torch.arange(length).expand_as(segment_ids)  # (n, t)
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    first = torch.where(starts, index, 0).cummax(dim=1).values
    return (index - first).masked_fill(segment_ids == PADDING, 0)

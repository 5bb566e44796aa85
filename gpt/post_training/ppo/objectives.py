"""The objectives of the policy and the value model of PPO.

Shapes: b rows, t positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gpt.data.sampling import CorpusFiles, Samples
from gpt.errors import ConfigError
from gpt.losses.base import Loss, LossTotals
from gpt.losses.batch import Batch
from gpt.losses.next_token import next_token_loss
from gpt.model.attention import Mask
from gpt.model.config import ModelConfig
from gpt.model.gpt import Embedding
from gpt.model.heads import ScalarHead, VocabularyHead
from gpt.model.masks import document_mask
from gpt.post_training.config import Pool
from gpt.post_training.grpo_loss import GroupPolicyLoss
from gpt.post_training.ppo_loss import PolicyLoss, ValueLoss
from gpt.training.objective import NextToken

PTX_SCALE = "ptx_scale"  # in `Batch.extra`: rows of pre-training data, and the factor (b, 1) of their summed loss


@dataclass(frozen=True)
class Policy:
    """A language model that learns from advantages, and from pre-training data with PPO-ptx."""

    policy_loss: PolicyLoss | GroupPolicyLoss
    streams: ClassVar[tuple[str, ...]] = ()
    optional_streams: ClassVar[tuple[str, ...]] = ()

    def batch(self, samples: Samples) -> Batch:
        """Every token as part of a response: for a dry run, which prices an update."""
        return _dry_batch(samples, "old_log_probs", "reference_log_probs", "advantages")

    def check_corpus(self, files: CorpusFiles, model: ModelConfig) -> list[str]:
        """Refuse prompts that are empty or leave no room for a response. Reads the length of each document."""
        seq_len, lengths = files.sampling.seq_len, np.diff(files.tokens.document_starts())
        empty, full = int((lengths == 0).sum()), int((lengths >= seq_len).sum())
        if empty or full:
            raise ConfigError(
                f"corpus '{files.name}': {empty:,} of its {len(lengths):,} prompts are empty and {full:,} leave no "
                f"room for a response in data.seq_len = {seq_len}. Prepare them with a smaller "
                f"conversations.max_prompt_tokens"
            )
        return []

    def front(self, config: ModelConfig) -> nn.Module:
        return Embedding(config)

    def head(self, config: ModelConfig) -> nn.Module:
        return VocabularyHead(config)

    def loss(self, *, compile: bool) -> Loss:
        return PolicyWithPretraining(self.policy_loss)

    def attention_mask(self, batch: Batch) -> Mask:
        return document_mask(batch.segment_ids)

    def after_step(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        pass


@dataclass(frozen=True)
class PolicyWithPretraining:
    """The policy's loss, and for rows of pre-training data their next-token loss times a factor, with a count of 0.

    The engine divides the sum of all gradients by the count, which is that of the responses' tokens.
    """

    policy: PolicyLoss | GroupPolicyLoss

    @property
    def metric_names(self) -> tuple[str, ...]:
        return (*self.policy.metric_names, "ptx_loss", "ptx_tokens")

    @property
    def evaluation_names(self) -> tuple[str, ...]:
        return self.policy.evaluation_names

    def __call__(self, outputs: Any, batch: Batch) -> LossTotals:
        scale = batch.extra.get(PTX_SCALE)
        if scale is None:
            totals = self.policy(outputs, batch)
            zero = totals.reported.new_zeros(())
            return LossTotals(
                totals.sum, totals.count, totals.reported, {**totals.metrics, "ptx_loss": zero, "ptx_tokens": zero}
            )
        found = next_token_loss(outputs.hidden, outputs.weight, batch.targets, outputs.shard)
        zero = found.reported.new_zeros(())
        metrics = {**dict.fromkeys(self.policy.metric_names, zero), "ptx_loss": found.reported}
        return LossTotals(
            found.sum * scale.max(), found.count * 0, zero, {**metrics, "ptx_tokens": found.count.to(zero.dtype)}
        )

    def values(self, outputs: Any, batch: Batch) -> Tensor:
        return self.policy.values(outputs, batch)


@dataclass(frozen=True)
class Value:
    """A scalar head that learns the return to expect at each token of a response. `pool`: see RewardConfig."""

    clip: float
    pool: Pool = "last"
    streams: ClassVar[tuple[str, ...]] = ()
    optional_streams: ClassVar[tuple[str, ...]] = ()

    def batch(self, samples: Samples) -> Batch:
        """As `Policy.batch`."""
        return _dry_batch(samples, "old_values", "returns")

    def check_corpus(self, files: CorpusFiles, model: ModelConfig) -> list[str]:
        return []

    def front(self, config: ModelConfig) -> nn.Module:
        return Embedding(config)

    def head(self, config: ModelConfig) -> nn.Module:
        return ScalarHead(config)

    def loss(self, *, compile: bool) -> Loss:
        return ValueLoss(clip=self.clip, mean=self.pool == "mean")

    def attention_mask(self, batch: Batch) -> Mask:
        return document_mask(batch.segment_ids)

    def after_step(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        pass


def _dry_batch(samples: Samples, *names: str) -> Batch:
    """A batch in which every token is part of a response, with zeros for the tensors (b, t) that the loss reads."""
    batch = NextToken().batch(samples)
    zeros = torch.zeros(batch.inputs.shape)
    mask = torch.ones(batch.inputs.shape, dtype=torch.bool)
    return Batch(batch.inputs, batch.targets, loss_mask=mask, extra=dict.fromkeys(names, zeros))

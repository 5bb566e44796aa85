"""Direct preference optimisation from rankings (DPO, arXiv 2305.18290).

A completion's reward is implicit: beta * log(pi / pi_reference) of its tokens, with the starting weights as reference.
The loss over the pairs of a prompt is that of a reward model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from gpt.data.sampling import CorpusFiles, Samples
from gpt.losses.base import Loss, LossTotals, VocabularyOutputs
from gpt.losses.batch import Batch, counted_targets
from gpt.losses.marks import IGNORE, PADDING
from gpt.losses.token_log_probs import token_log_probs
from gpt.model.attention import Mask
from gpt.model.config import ModelConfig
from gpt.model.gpt import Embedding
from gpt.model.heads import VocabularyHead
from gpt.model.masks import document_mask
from gpt.post_training.rankings import MARKS, check_rankings, ranked_rows
from gpt.post_training.reward import pairwise_loss
from gpt.post_training.sft import LEARNED
from gpt.training.objective import positions_of


@dataclass(frozen=True)
class Preferences:
    """Raise the better completions of a prompt above the worse ones, relative to the reference."""

    beta: float
    streams: ClassVar[tuple[str, ...]] = (LEARNED, MARKS)
    optional_streams: ClassVar[tuple[str, ...]] = ()

    def batch(self, samples: Samples) -> Batch:
        """Inputs and targets (n, t), IGNORE where a token is not learned. Attention and positions restart at each
        conversation. `extra`: what RankedRows has, the `levels`, and the slot of each position (n, t)."""
        rows = ranked_rows(samples)
        tokens = torch.from_numpy(samples.tokens)  # (n, t + 1)
        learned = torch.from_numpy(samples.streams[LEARNED])[:, 1:] != 0  # (n, t), of each target
        following = torch.cat((rows.sequences[:, 1:], rows.sequences.new_full((len(tokens), 1), PADDING)), dim=1)
        within = (following == rows.sequences) & (following != PADDING)
        marked = (torch.from_numpy(samples.streams[MARKS])[:, :-1] > 0).long()
        return Batch(
            tokens[:, :-1].contiguous(),
            tokens[:, 1:].masked_fill(~(within & learned), IGNORE),
            positions=positions_of(rows.sequences),
            segment_ids=rows.sequences,
            extra={**rows.extra, "levels": rows.levels, "slots": marked.cumsum(1) - marked},
        )

    def with_reference(self, batch: Batch, values: Tensor) -> Batch:
        """The batch with the reference's log-probability of each target, (n, t)."""
        return replace(batch, extra={**batch.extra, "reference_log_probs": values})

    def check_corpus(self, files: CorpusFiles, model: ModelConfig) -> list[str]:
        return check_rankings(files, n_ctx=model.n_ctx)

    def front(self, config: ModelConfig) -> nn.Module:
        return Embedding(config)

    def head(self, config: ModelConfig) -> nn.Module:
        return VocabularyHead(config)

    def loss(self, *, compile: bool) -> Loss:
        return PreferenceLoss(self.beta)

    def attention_mask(self, batch: Batch) -> Mask:
        return document_mask(batch.segment_ids)

    def after_step(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        pass


@dataclass(frozen=True)
class PreferenceLoss:
    """`pairwise_loss` of the implicit rewards, in the form that engines call; metrics as in RewardLoss.

    The count is the number of prompts with a pair.
    """

    beta: float
    metric_names = evaluation_names = ("accuracy", "margin", "reward")

    def __call__(self, outputs: VocabularyOutputs, batch: Batch) -> LossTotals:
        rewards = implicit_rewards(self.values(outputs, batch), batch, beta=self.beta)
        levels, ends = batch.extra["levels"], batch.extra["ends"]
        if batch.loss_mask is not None:
            levels = levels.masked_fill(~batch.loss_mask.gather(1, ends), IGNORE)
        return pairwise_loss(rewards, levels, batch.extra["prompts"])

    def values(self, outputs: VocabularyOutputs, batch: Batch) -> Tensor:
        """The log-probability of each learned target, (b, t)."""
        return token_log_probs(outputs, counted_targets(batch))


def implicit_rewards(log_probs: Tensor, batch: Batch, *, beta: float) -> Tensor:
    """beta * log(pi / pi_reference) of the completion in each slot, (b, c), from the policy's log-probabilities (b, t).

    A sum over learned tokens, not a mean (arXiv 2305.18290, equation 5).
    """
    counted = counted_targets(batch) != IGNORE
    log_ratios = (log_probs - batch.extra["reference_log_probs"]).where(counted, 0.0)
    slots = torch.arange(batch.extra["ends"].size(1), device=log_probs.device)
    members = batch.extra["slots"].unsqueeze(1) == slots.unsqueeze(1)  # (b, c, t)
    return beta * (log_ratios.unsqueeze(1) * members).sum(2)

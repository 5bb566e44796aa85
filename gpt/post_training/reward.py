"""Reward models: a number for each completion, learnt from rankings (InstructGPT, arXiv 2203.02155, section 3.5).

A prompt with its K completions is one element: one forward pass for each completion, and all pairs in one loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.data.sampling import CorpusFiles, Samples
from gpt.losses.base import Loss, LossTotals
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.losses.text_mean import mean_over_text
from gpt.model.attention import Mask
from gpt.model.config import ModelConfig
from gpt.model.gpt import Embedding
from gpt.model.heads import ScalarHead
from gpt.model.masks import document_mask
from gpt.post_training.config import Pool
from gpt.post_training.rankings import MARKS, check_rankings, ranked_rows
from gpt.training.objective import positions_of


@dataclass(frozen=True)
class Reward:
    """Rank the completions of a prompt by the scalar head's value at the last token of each, or by the mean of those of
    all its tokens, see RewardConfig."""

    pool: Pool = "last"
    streams: ClassVar[tuple[str, ...]] = (MARKS,)
    optional_streams: ClassVar[tuple[str, ...]] = ()

    def batch(self, samples: Samples) -> Batch:
        """Inputs (n, t), targets (n, c) the levels of up to c completions, and in `extra` where each ends. Attention
        and positions restart at each conversation."""
        rows = ranked_rows(samples)
        inputs = torch.from_numpy(samples.tokens)[:, :-1].contiguous()
        return Batch(
            inputs,
            rows.levels,
            positions=positions_of(rows.sequences),
            segment_ids=rows.sequences,
            extra=rows.extra,
        )

    def check_corpus(self, files: CorpusFiles, model: ModelConfig) -> list[str]:
        return check_rankings(files, n_ctx=model.n_ctx)

    def front(self, config: ModelConfig) -> nn.Module:
        return Embedding(config)

    def head(self, config: ModelConfig) -> nn.Module:
        return ScalarHead(config)

    def loss(self, *, compile: bool) -> Loss:
        return RewardLoss(mean=self.pool == "mean")

    def attention_mask(self, batch: Batch) -> Mask:
        return document_mask(batch.segment_ids)

    def after_step(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        pass


@dataclass(frozen=True)
class RewardLoss:
    """`pairwise_loss` in the form that engines call. The metrics are sums over prompts. With `mean`, a reward is the
    mean of the values of a conversation's tokens.

    `accuracy`: the share of a prompt's pairs in the right order, where equal rewards count one half. `margin`: the mean
    of r_better - r_worse over its pairs. `reward`: the mean over its completions.
    """

    mean: bool = False
    metric_names = evaluation_names = ("accuracy", "margin", "reward")

    def __call__(self, outputs: Tensor, batch: Batch) -> LossTotals:
        rewards = self.values(outputs, batch).gather(1, batch.extra["ends"])  # (b, c)
        levels = batch.targets
        if batch.loss_mask is not None:
            levels = levels.masked_fill(~batch.loss_mask.gather(1, batch.extra["ends"]), IGNORE)
        return pairwise_loss(rewards, levels, batch.extra["prompts"])

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The reward (b, t) of each conversation up to each position, in fp32 or wider."""
        values = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # (b, t, 1)
        return (mean_over_text(values, batch.positions) if self.mean else values)[..., 0]


def pairwise_loss(rewards: Tensor, levels: Tensor, prompts: Tensor) -> LossTotals:
    """The sum over prompts of the mean over their pairs of -log sigmoid(r_better - r_worse).

    `rewards` (b, c); `levels` (b, c), higher is better and IGNORE counts nothing; `prompts` (b, c) number the prompts
    of a row. Ties make no pair. The count is the number of prompts with a pair. All shapes are fixed, so that a GPU
    does not wait: with c slots, a row has c * c possible pairs.
    """
    counted = levels != IGNORE
    together = (prompts.unsqueeze(2) == prompts.unsqueeze(1)) & counted.unsqueeze(2) & counted.unsqueeze(1)  # (b, c, c)
    pairs = together & (levels.unsqueeze(2) > levels.unsqueeze(1))  # [i, j]: i is better than j
    pairs_of_slot = pairs.sum(2)  # (b, c)
    n_pairs = (together * pairs_of_slot.unsqueeze(1)).sum(2)  # (b, c): of the slot's prompt
    weights = pairs.to(rewards.dtype) / n_pairs.clamp(min=1).unsqueeze(2)  # each prompt's weights add up to 1
    differences = rewards.unsqueeze(2) - rewards.unsqueeze(1)
    total = (functional.softplus(-differences) * weights).sum()
    earlier = together.tril(-1).any(2)
    has_pair = (n_pairs > 0) & counted
    with torch.no_grad():
        right = (differences > 0) + 0.5 * (differences == 0)
        share = has_pair.to(rewards.dtype) / together.sum(2).clamp(min=1)  # each prompt's completions have equal shares
        metrics = {
            "accuracy": (right * weights).sum(),
            "margin": (differences * weights).sum(),
            "reward": (rewards * share).sum(),
        }
    return LossTotals(total, (has_pair & ~earlier).sum(), total.detach(), metrics)

"""Score episodes: rewards, log-probabilities under policy and reference, values; then advantages and returns.

Shapes: n episodes of this data rank, t = data.seq_len. Sums run over all data ranks, so that every layout has the same
ones. All tensors here are on the CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.post_training.advantages import gae, group_advantages, moments, token_rewards, whiten
from gpt.post_training.ppo.config import RewardSource
from gpt.post_training.ppo.episodes import Episodes
from gpt.post_training.ppo.models import PPOModels, PPOSetup, agree, exchange
from gpt.post_training.ppo.rewards import ResponseReward
from gpt.training.engine import Engine


@dataclass(frozen=True)
class Experience:
    """Episodes with everything that an update reads. `mask` (n, t): the tokens that count; episodes without a reward
    count nowhere. `rewards` and `gold` (n,) float64: raw scores, before the KL penalty."""

    episodes: Episodes
    mask: Tensor  # (n, t) bool
    rewards: Tensor
    by_name: dict[str, Tensor]  # each reward and gold reward, (n,)
    gold: Tensor | None
    log_probs: Tensor  # (n, t), of the policy before the update
    old_log_probs: Tensor  # (n, t)
    reference_log_probs: Tensor  # (n, t)
    old_values: Tensor  # (n, t)
    advantages: Tensor  # (n, t)
    returns: Tensor  # (n, t)
    advantage_std: float  # before whitening

    @property
    def counted(self) -> Tensor:
        """(n,) bool, the episodes that have a reward."""
        return self.rewards.isfinite()


def score(
    episodes: Episodes, setup: PPOSetup, models: PPOModels, *, beta: float, beat: Callable[[], None]
) -> Experience:
    """Score a data rank's episodes. Every rank must call it. ConfigError: a reward function failed on any rank."""
    config, by_name = setup.config, {}
    for source, reward in zip((*config.rewards, *config.gold), (*models.rewards, *models.gold), strict=True):
        beat()
        by_name[source.name] = scores_of(reward, episodes, setup, models.policy)
    rewards = weighted_sum(by_name, config.rewards, like=episodes)
    if config.missing_end_reward is not None:
        rewards = rewards.where(episodes.ended | ~rewards.isfinite(), config.missing_end_reward)
    mask = episodes.mask & rewards.isfinite()[:, None]
    # Uncounted episodes are left out as in the updates: the first ratio is exactly 1 for products of equal shapes. All
    # minibatches go at once, so that an engine gathers its weights once.
    batch = episodes.batch().without_rows((~rewards.isfinite()).nonzero().flatten().tolist())
    log_probs = models.policy.token_values(batch, before_each=beat).cpu().masked_fill(~mask, 0.0)
    reference = models.reference.token_values(batch, before_each=beat).cpu().masked_fill(~mask, 0.0)
    finite = rewards.nan_to_num(0.0, 0.0, 0.0).float()
    if models.value is None:
        assert setup.group is not None
        size, scale = setup.group.group_size, setup.group.scale_advantages
        relative = group_advantages(rewards, group_size=size, scale=scale).float()  # (n,)
        old_values = returns = torch.zeros_like(log_probs)
        advantages = relative[:, None].expand_as(log_probs).where(mask, 0.0)
    else:
        old_values = models.value.token_values(batch, before_each=beat).cpu().masked_fill(~mask, 0.0)
        penalised = token_rewards(log_probs, reference, finite, mask=mask, last=episodes.last, beta=beta)
        advantages, returns = gae(penalised, old_values, mask, discount=config.discount, gae_lambda=config.gae_lambda)
    parts = exchange(models.policy, moments(advantages, mask).tolist(), writes=setup.writes)
    sums = torch.tensor(parts, dtype=torch.float64).sum(0)
    total, squares, count = sums.tolist()
    mean = total / max(count, 1.0)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask, sums)
    # Replayed rollouts may be those of other weights of the same step: the ratio is w.r.t. the weights that wrote them.
    old_log_probs = episodes.log_probs if config.rollouts == "replay" else log_probs
    return Experience(
        episodes=episodes,
        mask=mask,
        rewards=rewards,
        by_name=by_name,
        gold=weighted_sum(by_name, config.gold, like=episodes) if config.gold else None,
        log_probs=log_probs,
        old_log_probs=old_log_probs.masked_fill(~mask, 0.0),
        reference_log_probs=reference,
        old_values=old_values,
        advantages=advantages,
        returns=returns,
        advantage_std=max(squares / max(count, 1.0) - mean * mean, 0.0) ** 0.5,
    )


def scores_of(reward: ResponseReward, episodes: Episodes, setup: PPOSetup, policy: Engine) -> Tensor:
    """The scores (n,) of one reward, on every rank of the data rank; only one of them calls a function."""
    if reward.per_data_rank:
        return reward.scores(episodes)
    error, scores = None, list[float]()
    if setup.writes:
        try:
            scores = reward.scores(episodes).tolist()
        except ConfigError as found:
            error = found
    agree(policy, error)
    found_by_rank: Any = exchange(policy, scores, writes=setup.writes)
    return torch.tensor(found_by_rank[policy.data_rank], dtype=torch.float64)


def weighted_sum(by_name: dict[str, Tensor], sources: tuple[RewardSource, ...], *, like: Episodes) -> Tensor:
    """The sum (n,) of rewards with their weights. NaN or infinite where any of them is."""
    total = torch.zeros(len(like), dtype=torch.float64)
    for source in sources:
        total = total + source.weight * by_name[source.name]
    return total

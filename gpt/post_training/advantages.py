"""Rewards, advantages and returns of sampled responses, one number for each response token. Pure functions.

Shapes: n responses, t positions. Position i of a row is the choice of token i + 1, as in `Batch.targets`: its value is
that of the tokens up to i, before the choice. `mask` (n, t) bool is True at the response tokens that a policy learns
from. Nothing else counts: neither prompts nor padding, nor tokens that another program has written in between.
"""

import torch
from torch import Tensor


def last_index(mask: Tensor) -> Tensor:
    """The last position in each row's mask, (n,) int64; 0 in a row without any."""
    index = torch.arange(mask.size(1), device=mask.device)
    return (index * mask).amax(dim=1)


def token_rewards(
    log_probs: Tensor, reference_log_probs: Tensor, scores: Tensor, *, mask: Tensor, last: Tensor, beta: float
) -> Tensor:
    """The reward of each token, (n, t): -beta * (log pi - log pi_reference), plus the response's score at `last`.

    InstructGPT, arXiv 2203.02155, section 3.5. Log-probabilities (n, t), scores (n,). `last` (n,), as `last_index`
    gives it: the end token if the response has one, never the padding behind it. A row without response tokens gets
    nothing.
    """
    rewards = (-beta * (log_probs - reference_log_probs)).where(mask, 0.0)
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last] += scores.to(rewards.dtype).where(mask[rows, last], 0.0)
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float = 1.0, gae_lambda: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (arXiv 1506.02438, equation 16) and returns, both (n, t), 0 outside the mask.

    The next step after a token is the next one in the mask, and after the last one the value is 0. Returns are
    advantages + values.
    """
    advantages = torch.zeros_like(values)
    next_value, next_advantage = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for i in reversed(range(values.size(1))):
        here = mask[:, i]
        delta = rewards[:, i] + discount * next_value - values[:, i]
        advantage = delta + discount * gae_lambda * next_advantage
        next_value, next_advantage = values[:, i].where(here, next_value), advantage.where(here, next_advantage)
        advantages[:, i] = advantage.where(here, 0.0)
    return advantages, (advantages + values).where(mask, 0.0)


def moments(x: Tensor, mask: Tensor) -> Tensor:
    """Sum, sum of squares and count over the mask, (3,) float64. Those of several ranks add up."""
    kept = x.double().where(mask, 0.0)
    return torch.stack((kept.sum(), kept.square().sum(), mask.sum().double()))


def whiten(x: Tensor, mask: Tensor, sums: Tensor | None = None, *, shift_mean: bool = True) -> Tensor:
    """x (n, t) with mean 0 and variance 1 over the mask, 0 outside it.

    `sums`: the `moments` of all rows of the batch, if other ranks hold some. `shift_mean` False keeps the mean, as for
    rewards. The variance is the unbiased one, and 1e-8 is added to it. Fewer than two numbers stay as they are.
    """
    total, squares, count = (moments(x, mask) if sums is None else sums).unbind()
    mean = total / count.clamp(min=1)
    variance = ((squares - total * mean) / (count - 1).clamp(min=1)).clamp(min=0)
    scaled = (x.double() - mean) * (variance + 1e-8).rsqrt() + (0.0 if shift_mean else mean)
    return scaled.where(count > 1, x.double()).where(mask, 0.0).to(x.dtype)


def group_advantages(scores: Tensor, *, group_size: int, scale: bool = True) -> Tensor:
    """Each score minus the mean of its group, (n,); with `scale` divided by the group's standard deviation + 1e-4.

    GRPO, arXiv 2402.03300, section 4.1.2. Each `group_size` consecutive scores answer one prompt. Scores that are not
    finite count in no mean, and their advantage is 0.
    """
    groups = scores.view(-1, group_size)
    known = groups.isfinite()
    count = known.sum(1, keepdim=True)
    mean = groups.where(known, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
    centred = (groups - mean).where(known, 0.0)
    if scale:
        deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        centred = centred / (deviation + 1e-4)
    return centred.view(-1)

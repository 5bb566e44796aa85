"""The updates of an iteration: minibatches through policy and value model, with the pre-training gradient of PPO-ptx.

The policy's gradient in one update is

    grad(sum of the clipped losses of responses' tokens) / n + gamma * grad(sum of pre-training losses) / m

with n tokens of responses in the minibatch and m = `ptx_per_episode` * minibatch * seq_len pre-training positions, both
over all data ranks. gamma (27.8 in the paper) thus multiplies the gradient of a mean loss per token. The norm is
clipped after the sum.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from gpt.losses.batch import Batch
from gpt.post_training.ppo.models import PPOModels, PPOSetup, exchange
from gpt.post_training.ppo.objectives import PTX_SCALE
from gpt.post_training.ppo.scoring import Experience
from gpt.training.engine import Engine, StepResult
from gpt.training.objective import NextToken


@dataclass(frozen=True)
class Updates:
    """The results of an iteration's updates, in order. `policy` is empty while only the value model learns."""

    policy: list[StepResult] = field(default_factory=list)
    value: list[StepResult] = field(default_factory=list)


def update(
    experience: Experience,
    setup: PPOSetup,
    models: PPOModels,
    *,
    step: int,
    lr: float,
    value_lr: float,
    beat: Callable[[], None],
) -> Updates:
    """Learn from the episodes of iteration `step`, counted from 1. Every rank must call it.

    The rows keep the order in which their log-probabilities were computed, so that the first ratio is exactly 1.
    """
    config, done = setup.config, Updates()
    share = setup.minibatch // models.policy.data_size
    starts = range(0, len(experience.episodes), share)
    mine = [int(experience.mask[start : start + share].sum()) for start in starts]
    tokens = [sum(counts) for counts in zip(*exchange(models.policy, mine, writes=setup.writes), strict=True)]
    learns = step > config.critic_warmup_iterations
    for epoch in range(config.inner_epochs):
        for index, start in enumerate(starts):
            beat()
            part = slice(start, start + share)
            if learns:
                models.policy.forward_backward(policy_batch(experience, part))
                for batch in ptx_batches(setup, models.policy, step, epoch, index, tokens=tokens[index]):
                    models.policy.forward_backward(batch)
                done.policy.append(models.policy.optimizer_step(lr))
            if models.value is not None:
                models.value.forward_backward(value_batch(experience, part))
                done.value.append(models.value.optimizer_step(value_lr))
    return done


def policy_batch(experience: Experience, part: slice) -> Batch:
    """The rows of a minibatch for the policy's loss."""
    return _batch(
        experience,
        part,
        old_log_probs=experience.old_log_probs[part],
        reference_log_probs=experience.reference_log_probs[part],
        advantages=experience.advantages[part],
    )


def value_batch(experience: Experience, part: slice) -> Batch:
    """The rows of a minibatch for the value model's loss."""
    return _batch(experience, part, old_values=experience.old_values[part], returns=experience.returns[part])


def _batch(experience: Experience, part: slice, **extra: torch.Tensor) -> Batch:
    """Rows whose uncounted episodes are masked out."""
    batch = experience.episodes.rows(part.start, part.stop).batch(**extra)
    uncounted = (~experience.counted[part]).nonzero().flatten().tolist()
    return batch.without_rows(uncounted)


def ptx_batches(setup: PPOSetup, policy: Engine, step: int, epoch: int, index: int, *, tokens: int) -> Iterator[Batch]:
    """Pre-training rows for minibatch `index` of an iteration, as many as the minibatch has at a time.

    `tokens`: those of responses in the minibatch, over all data ranks. Each position of the data's order is read once.
    """
    if setup.ptx is None or not setup.config.ptx_gamma:
        return
    k = setup.config.ptx_per_episode
    minibatches = setup.episodes // setup.minibatch
    number = ((step - 1) * setup.config.inner_epochs + epoch) * minibatches + index
    share = setup.minibatch // policy.data_size
    scale = setup.config.ptx_gamma * max(tokens, 1) / (k * setup.minibatch * setup.seq_len)
    for part in range(k):
        first = (number * k + part) * setup.minibatch + policy.data_rank * share
        samples = setup.ptx.read(torch.arange(first, first + share).numpy())
        batch = NextToken().batch(samples)
        extra = {PTX_SCALE: torch.full((share, 1), scale)}
        yield Batch(batch.inputs, batch.targets, positions=batch.positions, segment_ids=batch.segment_ids, extra=extra)

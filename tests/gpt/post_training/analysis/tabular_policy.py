"""A policy small enough to train in a test: a table of logits, prompts x responses, trained by PPO on sampled episodes.

An episode is `words` independent choices from the table. Each has a length, a quality, an end token or none. The
trained reward is the quality plus whatever a fault adds.
The metrics come from the episodes, as in a run: their noise, trends and correlations are real.
"""

from dataclasses import dataclass

import numpy as np

from gpt.post_training.analysis.series import IterationSeries
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter


@dataclass(frozen=True)
class World:
    """Knobs of a training run; the defaults give a healthy one."""

    iterations: int = 60
    prompts: int = 8
    responses: int = 48
    episodes: int = 256
    words: int = 4
    updates: int = 2
    lr: float = 1.0
    beta: float = 1.0
    critic_lr: float = 0.3
    length_pay: float = 0.0  # reward for each token more than 40
    hack: bool = False  # one rare response a prompt with a high trained reward and a low quality
    unended_pay: float | None = None  # reward for the responses without an end token
    binary: bool = False  # the reward is 1 for the better half, else 0
    temperature: float = 1.0  # of the sampler only
    stale: int = 0  # iterations by which the sampler's weights are late
    seed: int = 0


def softmax_log(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def environment(world, rng):
    """Reference logits, lengths, trained reward, quality, and end tokens; (prompts, responses) each."""
    shape = (world.prompts, world.responses)
    reference = softmax_log(rng.normal(size=shape))
    lengths = rng.integers(20, 61, size=shape).astype(float)
    quality = rng.normal(size=shape) + rng.normal(size=(world.prompts, 1))
    ends = np.ones(shape, dtype=bool)
    ends[:, :2] = False  # about 4% of the responses
    proxy = quality + world.length_pay * (lengths - 40)
    if world.hack:
        reference[:, -1] = -3.0
        reference = softmax_log(reference)
        quality[:, -1], proxy[:, -1] = -4.0, quality[:, :-1].max(1) + 2.0
    if world.unended_pay is not None:
        proxy[~ends] += world.unended_pay
    if world.binary:
        proxy = (quality > np.median(quality, axis=1, keepdims=True)).astype(float)
    return reference, lengths, proxy, quality, ends


def train(world):
    """Train and return the metrics of each iteration: name -> list of values."""
    rng = np.random.default_rng(world.seed)
    reference, lengths, proxy, quality, ends = environment(world, rng)
    logits, values = reference.copy(), np.zeros(world.prompts)
    history, log = [logits.copy()], {}
    for _ in range(world.iterations):
        sampler = softmax_log(history[max(0, len(history) - 1 - world.stale)])
        x = rng.integers(world.prompts, size=world.episodes)
        y = drawn(sampler[x] / world.temperature, rng)
        old = softmax_log(logits)
        scores = proxy[x, y]
        log_ratio = old[x, y] - reference[x, y]
        returns = scores - world.beta * log_ratio
        advantages = returns - values[x]
        explained = 1 - np.var(returns - values[x]) / max(np.var(returns), 1e-12)
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        behaviour = sampler[x, y] if world.stale else old[x, y]
        logits, clipped, first = updated(logits, x, y, behaviour, advantages, world)
        for prompt in range(world.prompts):
            if (mine := x == prompt).any():
                values[prompt] += world.critic_lr * (returns[mine].mean() - values[prompt])
        history.append(logits.copy())
        entropy = -(np.exp(old) * old).sum(1).mean()
        record = {
            "reward": scores.mean(), "reward_std": scores.std(), "gold_reward": quality[x, y].mean(),
            "kl": world.words * log_ratio.mean(), "entropy": entropy / lengths[x, y].mean(),
            "length": lengths[x, y].mean(),
            "missing_end": 1 - ends[x, y].mean(), "clip_fraction": clipped, "explained_variance": explained,
            "ptx_loss": -(np.exp(reference) * old).sum(1).mean() / lengths.mean(), "first_ratio_error": first,
            "sampler_gap": np.abs(sampler[x, y] - old[x, y]).mean() / lengths[x, y].mean(),
        }  # fmt: skip
        for name, value in record.items():
            log.setdefault(name, []).append(float(value))
    return log


def drawn(log_probs, rng):
    """One response for each episode."""
    return np.argmax(log_probs + rng.gumbel(size=log_probs.shape), axis=1)


def updated(logits, x, y, old, advantages, world):
    """PPO's clipped updates on the whole batch. Returns logits, mean clip fraction, error of the first ratio."""
    logits, clipped, first = logits.copy(), [], 0.0
    for update in range(world.updates):
        log_probs = softmax_log(logits)
        ratio = np.exp(log_probs[x, y] - old)
        if update == 0:
            first = np.abs(ratio - 1).max()
        outside = np.abs(ratio - 1) > 0.2
        clipped.append(outside.mean())
        used = ~(outside & (np.sign(advantages) == np.sign(ratio - 1)))
        weight = used * ratio * advantages / len(x) * world.prompts
        gradient = np.zeros_like(logits)
        np.add.at(gradient, (x, y), weight)
        total = np.zeros(world.prompts)
        np.add.at(total, x, weight)
        logits += world.lr * (gradient - total[:, None] * np.exp(log_probs))
    return logits, float(np.mean(clipped)), float(first)


def as_metrics(log):
    """The lists as the series that the rules read; values that are not finite are left out."""
    found = {}
    for name, values in log.items():
        values = np.asarray(values, dtype=float)
        finite = np.isfinite(values)
        found[name] = IterationSeries(np.arange(1, len(values) + 1)[finite], values[finite])
    return found


def write_run(directory, world, *, steps=1, nan_at=None):
    """Train, and write the metrics of a run with `steps` steps an iteration. Returns the directory."""
    log = train(world)
    quiet = MetricsConfig(wandb="disabled")
    with MetricsWriter(quiet, directory, run_config={}, resume_step=None, interactive=False) as writer:
        for i in range(world.iterations):
            values = {f"ppo/{name}": series[i] for name, series in log.items()}
            if i + 1 == nan_at:
                values["ppo/reward"] = float("nan")
            writer.log(steps * (i + 1), {**values, "ppo/iteration": i + 1})
    return directory

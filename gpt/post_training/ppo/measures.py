"""The metrics of an iteration, over all data ranks, and the texts that a person reads.

Units: KL in nats a response, entropy in nats a token, length in tokens a response, fractions from 0 to 1.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gpt.post_training.kl import kl_estimate, kl_per_response
from gpt.post_training.ppo.models import PPOSetup, exchange
from gpt.post_training.ppo.scoring import Experience
from gpt.post_training.ppo.updates import Updates
from gpt.training.engine import Engine, StepResult

SAMPLES = 4  # texts of an iteration in samples.jsonl

Numbers = dict[str, float]


def iteration_values(
    experience: Experience, updates: Updates, setup: PPOSetup, policy: Engine, *, step: int, beta: float
) -> Numbers:
    """The values to log of an iteration, the same on every rank. Every rank must call it."""
    parts = exchange(policy, episode_sums(experience), writes=setup.writes)
    sums = {name: sum(part[name] for part in parts) for name in parts[0]}
    gap = max(part["sampler_gap_max"] for part in parts)
    n, tokens, counted = sums["episodes"], max(sums["tokens"], 1.0), max(sums["counted"], 1.0)
    reward = sums["reward"] / counted
    returns_mean = sums["returns"] / tokens
    returns_variance = sums["returns_squared"] / tokens - returns_mean**2
    values: Numbers = {
        "ppo/reward": reward,
        "ppo/reward_std": math.sqrt(max(sums["reward_squared"] / counted - reward**2, 0.0)),
        "ppo/kl": sums["kl"] / counted,
        "ppo/length": sums["length"] / n,
        "ppo/missing_end": sums["missing_end"] / n,
        "ppo/nan_rewards": n - sums["counted"],
        "ppo/sampler_gap": sums["sampler_gap"] / tokens,
        "ppo/sampler_gap_max": gap,
        "ppo/reward_length_correlation": correlation(sums, counted),
        "ppo/advantage_std": experience.advantage_std,
        "ppo/beta": beta,
        "ppo/iteration": float(step),
        "ppo/episodes": float(step * setup.episodes),
    }
    if returns_variance > 0:
        error_variance = sums["value_error_squared"] / tokens - (sums["value_error"] / tokens) ** 2
        values["ppo/explained_variance"] = 1.0 - error_variance / returns_variance
    if sums["ended"]:
        values["ppo/ended_reward"] = sums["ended_reward"] / sums["ended"]
    if experience.gold is not None:
        values["ppo/gold_reward"] = sums["gold"] / counted
    for name in experience.by_name:
        values[f"ppo/rewards/{name}"] = sums[f"rewards/{name}"] / counted
    values |= update_values(updates)
    if setup.config.rollouts == "replay" and "ppo/first_ratio_error" in values:
        # Other weights may have written these rollouts, so their first ratio need not be 1.
        values["ppo/replayed_ratio_error"] = values.pop("ppo/first_ratio_error")
    return values


def episode_sums(experience: Experience) -> Numbers:
    """Sums over this data rank's episodes and tokens, in float64."""
    episodes, mask, counted = experience.episodes, experience.mask, experience.counted
    lengths = episodes.response_tokens.double()
    kl = kl_of(experience)
    gap = (experience.log_probs.double() - episodes.log_probs.double()).abs() * mask
    returns, values = experience.returns.double()[mask], experience.old_values.double()[mask]
    rewards, ended = experience.rewards[counted], episodes.ended[counted]
    sums = {
        "episodes": float(len(episodes)),
        "counted": total(counted),
        "tokens": total(mask),
        "reward": total(rewards),
        "reward_squared": total(rewards**2),
        "kl": total(kl[counted]),
        "length": total(lengths),
        "missing_end": total(~episodes.ended),
        "ended": total(ended),
        "ended_reward": total(rewards[ended]),
        "sampler_gap": total(gap),
        "sampler_gap_max": float(gap.max()),
        "returns": total(returns),
        "returns_squared": total(returns**2),
        "value_error": total(returns - values),
        "value_error_squared": total((returns - values) ** 2),
        "counted_length": total(lengths[counted]),
        "length_squared": total(lengths[counted] ** 2),
        "reward_times_length": total(rewards * lengths[counted]),
    }
    sums |= {f"rewards/{name}": total(scores[counted].nan_to_num()) for name, scores in experience.by_name.items()}
    if experience.gold is not None:
        sums["gold"] = total(experience.gold[counted].nan_to_num())
    return sums


def kl_of(experience: Experience) -> Tensor:
    """The KL of each response w.r.t. the reference in nats (k1), (n,) float64."""
    old, reference, mask = experience.old_log_probs, experience.reference_log_probs, experience.mask
    return kl_per_response(kl_estimate(old.double(), reference.double(), mask, estimator="k1"), mask)


def total(values: Tensor) -> float:
    return float(values.double().sum())


def correlation(sums: Numbers, n: float) -> float:
    """The correlation of reward and length over the episodes; 0 if either is constant."""
    reward, length = sums["reward"] / n, sums["counted_length"] / n
    variances = (sums["reward_squared"] / n - reward**2, sums["length_squared"] / n - length**2)
    if min(variances) <= 1e-12:
        return 0.0
    return (sums["reward_times_length"] / n - reward * length) / math.sqrt(variances[0] * variances[1])


def update_values(updates: Updates) -> Numbers:
    """The values of an iteration's updates: means over the tokens of its minibatches, and the first ratio's error."""
    value = updates.value
    values: Numbers = {}
    if value:
        values = {
            "ppo/value_loss": _mean_loss(value),
            "ppo/value_clip_fraction": mean_metric(value, "value_clip_fraction"),
            "ppo/value_gradient_norm": value[0].gradient_norm,
        }
    policy = updates.policy
    if not policy:
        return values
    values |= {
        "loss": _mean_loss(policy),
        "gradient_norm": policy[-1].gradient_norm,
        "ppo/policy_loss": _mean_loss(policy),
        "ppo/clip_fraction": mean_metric(policy, "clip_fraction"),
        "ppo/update_kl": mean_metric(policy, "update_kl"),
        "ppo/entropy": mean_metric(policy, "entropy"),
        "ppo/first_ratio_error": policy[0].loss.metrics["ratio_error"],
    }
    if any(result.loss.metrics["ptx_tokens"] for result in policy):
        values["ppo/ptx_loss"] = mean_metric(policy, "ptx_loss") / mean_metric(policy, "ptx_tokens")
    return values


def mean_metric(results: Sequence[StepResult], name: str) -> float:
    """The mean of a metric over the tokens of these steps; NaN without any."""
    tokens = sum(result.loss.tokens for result in results)
    found = sum(result.loss.metrics[name] * result.loss.tokens for result in results)
    return found / tokens if tokens else float("nan")


def _mean_loss(results: Sequence[StepResult]) -> float:
    tokens = sum(result.loss.tokens for result in results)
    return sum(result.loss.loss_sum for result in results) / tokens if tokens else float("nan")


def sample_lines(experience: Experience, setup: PPOSetup, *, step: int) -> list[dict[str, Any]]:
    """Lines of samples.jsonl: the first episodes of the main rank, with reward, KL and length."""
    episodes = experience.episodes.rows(0, SAMPLES)
    kl = kl_of(experience)
    lines = []
    for row, (prompt, response) in enumerate(zip(episodes.prompts(), episodes.responses(), strict=True)):
        line: dict[str, Any] = {
            "step": step,
            "prompt": setup.tokenizer.decode(prompt),
            "text": setup.tokenizer.decode([*prompt, *response]),
            "kl": float(kl[row]),
            "length": len(response),
        }
        reward = float(experience.rewards[row])
        lines.append(line | ({"reward": reward} if math.isfinite(reward) else {}))
    return lines

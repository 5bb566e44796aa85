"""Best-of-n from N >= n samples a prompt: unbiased rewards for every n, and the samples that it chooses.

Best-of-n draws n responses and keeps the one with the highest proxy reward. It needs no training, so it is the baseline
of a policy at equal KL. The estimator averages over all subsets of n samples (Nakano et al., arXiv 2112.09332).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.evaluation.intervals import Interval, bootstrap_interval
from gpt.post_training.analysis.over_optimisation import best_of_n_kl

Values = NDArray[np.float64]
Prompt = TypeVar("Prompt")  # a text, or a conversation
Score = Callable[[list[Prompt], list[str]], Sequence[float]]
"""Rewards of completions: (prompts, completions) of equal length -> one number each."""
Generate = Callable[[list[Prompt], int], Sequence[str]]
"""One completion a prompt: (prompts, seed) -> texts. Prompt i uses the seed `seed` + i."""


@dataclass(frozen=True)
class BestOfNPoint:
    """Mean rewards of best-of-n over the prompts, each with a bootstrap over prompts. `gold` may be missing."""

    n: int
    kl: float  # nats
    proxy: Interval
    gold: Interval | None


@dataclass(frozen=True)
class ScoredSamples:
    """N samples of each prompt with their rewards. NaN where a reward is not known; such samples do not count."""

    completions: list[list[str]]  # prompts x N
    proxy: Values  # (prompts, N)
    gold: Values | None  # (prompts, N)

    def chosen(self, n: int) -> list[int]:
        """The index of the best of the first n samples of each prompt by the proxy."""
        found: list[int] = np.where(np.isnan(self.proxy[:, :n]), -np.inf, self.proxy[:, :n]).argmax(axis=1).tolist()
        return found

    def best(self, n: int) -> list[str]:
        """The text of that sample."""
        return [texts[i] for texts, i in zip(self.completions, self.chosen(n), strict=True)]


def draw_samples(
    prompts: Sequence[Prompt],
    generate: Generate[Prompt],
    score: Score[Prompt],
    *,
    n: int,
    gold: Score[Prompt] | None = None,
    seed: int = 0,
) -> ScoredSamples:
    """Draw and score n samples of each prompt. One process; the callables decide where they run.

    ConfigError: no prompts, n below 1, or a scorer that returns another number of rewards.
    """
    if n < 1 or not prompts:
        raise ConfigError(f"best-of-n of n = {n} and {len(prompts)} prompts is invalid: both must be at least 1.")
    asked = list(prompts)
    rounds = [list(generate(asked, seed + i * len(asked))) for i in range(n)]
    proxy = np.stack([_scored("score", score, asked, texts) for texts in rounds], axis=1)
    golds = None if gold is None else np.stack([_scored("gold", gold, asked, texts) for texts in rounds], axis=1)
    return ScoredSamples([list(texts) for texts in zip(*rounds, strict=True)], proxy, golds)


def _scored(name: str, score: Score[Prompt], prompts: list[Prompt], texts: list[str]) -> Values:
    rewards = np.asarray(score(prompts, texts), dtype=np.float64)
    if rewards.shape != (len(texts),):
        raise ConfigError(
            f"{name} returned rewards of shape {rewards.shape} for {len(texts)} completions. Return one each."
        )
    return np.where(np.isfinite(rewards), rewards, np.nan)


def best_of_n_curve(
    proxy: Values, gold: Values | None = None, *, ns: Sequence[int] | None = None
) -> list[BestOfNPoint]:
    """Estimate best-of-n for each n, by default powers of two up to N. `proxy`, `gold`: (prompts, N).

    A prompt with fewer than n known samples does not count at n.
    """
    most = proxy.shape[1]
    chosen = ns if ns is not None else [n for n in (2**i for i in range(most.bit_length())) if n <= most]
    points = []
    for n in chosen:
        if not 1 <= n <= most:
            raise ConfigError(f"n = {n} is invalid: it must be from 1 to the {most} samples of a prompt.")
        proxies = [_expected_best(row, row, n) for row in proxy]
        golds = None if gold is None else [_expected_best(*pair, n) for pair in zip(proxy, gold, strict=True)]
        points.append(BestOfNPoint(n, best_of_n_kl(n), _mean(proxies), None if golds is None else _mean(golds)))
    return points


def _mean(values: Sequence[float | None]) -> Interval:
    return bootstrap_interval([[value] for value in values if value is not None], resamples=2000)


def _expected_best(proxy: Values, rewards: Values, n: int) -> float | None:
    """The mean, over all subsets of n samples, of the reward of the one with the highest proxy. Ties share it."""
    known = ~(np.isnan(proxy) | np.isnan(rewards))
    proxy, rewards = proxy[known], rewards[known]
    total = len(proxy)
    if total < n:
        return None
    _, tied = np.unique(proxy, return_inverse=True)
    shared = (np.bincount(tied, weights=rewards) / np.bincount(tied))[tied]
    by_rank = shared[np.argsort(proxy, kind="stable")]
    # P(the best of n has rank i) = C(i - 1, n - 1) / C(N, n): from rank N down, each is the one above times a ratio.
    probability, expected = n / total, 0.0
    for i in range(total, n - 1, -1):
        expected += probability * float(by_rank[i - 1])
        probability *= (i - n) / (i - 1) if i > 1 else 0.0
    return expected


def curve_record(points: Sequence[BestOfNPoint]) -> list[dict[str, Any]]:
    """The curve as JSON, for RUN/best_of_n.json, which `triaxial report` draws."""
    return [
        {
            "n": point.n,
            "kl": point.kl,
            "proxy": point.proxy.estimate,
            "gold": None if point.gold is None else point.gold.estimate,
        }
        for point in points
    ]

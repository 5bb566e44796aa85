"""How well rewards agree with rankings: accuracy by pairs, with intervals by prompt; agreement; calibration.

A pair is two completions of one prompt at different levels. It is right if the better one has the higher reward; equal
rewards count one half. Intervals are bootstrapped over prompts, since the pairs of a prompt are not independent.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt.evaluation.intervals import bootstrap_bounds

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_RESAMPLES = 2000
_BINS = 10  # of the calibration
_QUARTERS = 4  # of the margins


@dataclass(frozen=True)
class RankedPrompt:
    """A prompt's k completions: token ids of each whole conversation, its level (higher is better, equal levels are
    ties) and its score by the source, NaN where unknown. `prompt_id` is shared by all rankings of the prompt."""

    prompt_id: str
    labeller: str
    completions: tuple[Ints, ...]
    levels: Ints  # (k,)
    scores: Floats  # (k,)


@dataclass(frozen=True)
class Accuracy:
    """The share of pairs in the right order, with a 95% interval; `pairs` and `prompts` that have any. NaN of none."""

    share: float
    low: float
    high: float
    pairs: int
    prompts: int


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs of similar predicted probability: its mean, and the share of them in the right order."""

    predicted: float
    observed: float
    pairs: int


@dataclass(frozen=True)
class RankingReport:
    """Everything that is measured of rewards on rankings.

    `by_margin`: by the difference of the source's scores, in quarters of the pairs, or of levels without scores.
    `between_labellers`: of two labellers of the same two completions, how often they agree; `model_on_these`: how often
    the rewards agree with a labeller on these pairs. `longer_is_better`: how often the completion of more tokens is
    the better one, by the rankings and by the rewards. `nan`: completions without a finite reward, left out.
    """

    overall: Accuracy
    by_prompt: float  # the mean over prompts of a prompt's share, as the training metric
    by_margin: dict[str, Accuracy]
    by_labeller: dict[str, Accuracy]
    between_labellers: Accuracy
    model_on_these: Accuracy
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float
    loss: float  # mean over prompts of the mean over pairs, nats
    reward_mean: float
    reward_std: float
    completions: int
    nan: int
    longer_is_better: dict[str, Accuracy]


@dataclass(frozen=True)
class Pairs:
    """All pairs of some prompts, in arrays (m,): the prompt's number, reward of the better minus that of the worse one,
    the same of scores and of lengths in tokens, and the labeller."""

    prompt: Ints
    difference: Floats
    margin: Floats
    length: Ints
    labeller: NDArray[np.str_]

    @property
    def right(self) -> Floats:
        """1 where the better one has the higher reward, 0.5 where rewards are equal, else 0."""
        right: Floats = (self.difference > 0) + 0.5 * (self.difference == 0)
        return right


def ranking_report(prompts: Sequence[RankedPrompt], rewards: Sequence[Floats], *, seed: int = 0) -> RankingReport:
    """Compare rewards (k,) of each prompt's completions with its ranking."""
    pairs = pairs_of(prompts, rewards)
    every = np.concatenate([*rewards, np.zeros(0)])
    finite = every[np.isfinite(every)]
    shares = _by_prompt(pairs.prompt, pairs.right)
    losses = _by_prompt(pairs.prompt, np.logaddexp(0.0, -pairs.difference))
    known = pairs.length != 0
    bins = calibration(pairs)
    agreement = _agreement(prompts, rewards, seed=seed)
    return RankingReport(
        overall=accuracy(pairs.right, pairs.prompt, seed=seed),
        by_prompt=_mean(shares),
        by_margin=_by_margin(pairs, seed=seed),
        by_labeller={
            name: accuracy(pairs.right[pairs.labeller == name], pairs.prompt[pairs.labeller == name], seed=seed)
            for name in sorted(set(pairs.labeller.tolist()) - {""})
        },
        between_labellers=agreement[0],
        model_on_these=agreement[1],
        calibration=bins,
        calibration_error=_mean_gap(bins),
        loss=_mean(losses),
        reward_mean=_mean(finite),
        reward_std=float(finite.std()) if len(finite) else float("nan"),
        completions=len(every),
        nan=len(every) - len(finite),
        longer_is_better={
            "rankings": accuracy((pairs.length[known] > 0) * 1.0, pairs.prompt[known], seed=seed),
            "rewards": accuracy(
                ((pairs.length[known] > 0) == (pairs.difference[known] > 0)) * 1.0, pairs.prompt[known], seed=seed
            ),
        },
    )


def pairs_of(prompts: Sequence[RankedPrompt], rewards: Sequence[Floats]) -> Pairs:
    """All pairs whose rewards are finite."""
    columns: dict[str, list[NDArray[np.generic]]] = defaultdict(list)
    for number, (prompt, own) in enumerate(zip(prompts, rewards, strict=True)):
        lengths = np.array([len(ids) for ids in prompt.completions], dtype=np.int64)
        better, worse = np.nonzero((prompt.levels[:, None] > prompt.levels[None, :]) & _finite_pairs(own))
        columns["prompt"].append(np.full(len(better), number))
        columns["difference"].append(own[better] - own[worse])
        columns["margin"].append(prompt.scores[better] - prompt.scores[worse])
        columns["length"].append(lengths[better] - lengths[worse])
        columns["labeller"].append(np.full(len(better), prompt.labeller))
    types = {
        "prompt": np.int64,
        "difference": np.float64,
        "margin": np.float64,
        "length": np.int64,
        "labeller": np.str_,
    }
    joined = {
        name: np.concatenate(columns[name]) if columns[name] else np.zeros(0, dtype=kind)
        for name, kind in types.items()
    }
    return Pairs(**joined)


def accuracy(right: Floats, group: Ints, *, seed: int) -> Accuracy:
    """The mean of `right` (m,) with a bootstrap interval over the groups (m,), such as prompts."""
    if not len(right):
        return Accuracy(float("nan"), float("nan"), float("nan"), 0, 0)
    _, index = np.unique(group, return_inverse=True)
    sums, counts = np.bincount(index, weights=right), np.bincount(index)
    low, high = bootstrap_bounds(sums, counts, resamples=_RESAMPLES, seed=seed)
    return Accuracy(float(right.mean()), low, high, len(right), len(sums))


def calibration(pairs: Pairs) -> tuple[CalibrationBin, ...]:
    """Bins of equally many pairs by the predicted probability that the one with the higher reward is better."""
    if not len(pairs.difference):
        return ()
    predicted = 1 / (1 + np.exp(-np.abs(pairs.difference)))
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, _BINS) if len(part)]
    return tuple(
        CalibrationBin(float(predicted[part].mean()), float(pairs.right[part].mean()), len(part)) for part in parts
    )


def _finite_pairs(rewards: Floats) -> NDArray[np.bool_]:
    finite = np.isfinite(rewards)
    return np.logical_and.outer(finite, finite)


def _by_prompt(prompt: Ints, values: Floats) -> Floats:
    """The mean of the values of each prompt that has any."""
    if not len(prompt):
        return np.zeros(0)
    _, index = np.unique(prompt, return_inverse=True)
    means: Floats = np.bincount(index, weights=values) / np.bincount(index)
    return means


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _mean_gap(bins: Sequence[CalibrationBin]) -> float:
    """The expected calibration error: the mean over pairs of abs(predicted - observed) of their bin."""
    n = sum(each.pairs for each in bins)
    return sum(each.pairs * abs(each.predicted - each.observed) for each in bins) / n if n else float("nan")


def _by_margin(pairs: Pairs, *, seed: int) -> dict[str, Accuracy]:
    """Quarters of the pairs whose scores are known, from the closest to the clearest."""
    known = np.flatnonzero(np.isfinite(pairs.margin))
    if not len(known):
        return {}
    order = known[np.argsort(pairs.margin[known], kind="stable")]
    found = {}
    for part in np.array_split(order, _QUARTERS):
        if len(part):
            name = f"{pairs.margin[part[0]]:.3g} to {pairs.margin[part[-1]]:.3g}"
            found[name] = accuracy(pairs.right[part], pairs.prompt[part], seed=seed)
    return found


def _agreement(prompts: Sequence[RankedPrompt], rewards: Sequence[Floats], *, seed: int) -> tuple[Accuracy, Accuracy]:
    """On the pairs that two labellers or more have put in order: how often two of them agree, and how often the rewards
    agree with one of them."""
    judged: dict[tuple[str, bytes, bytes], list[tuple[str, bool, float]]] = defaultdict(list)
    for prompt, own in zip(prompts, rewards, strict=True):
        for key, value in _judgements(prompt, own):
            judged[key].append(value)
    numbers = {prompt_id: number for number, prompt_id in enumerate(sorted({key[0] for key in judged}))}
    agree, model = list[tuple[float, int]](), list[tuple[float, int]]()
    for (prompt_id, _, _), values in judged.items():
        if len({labeller for labeller, _, _ in values}) < 2:
            continue
        number = numbers[prompt_id]
        agree += [(float(a[1] == b[1]), number) for i, a in enumerate(values) for b in values[:i] if a[0] != b[0]]
        model += [(right, number) for _, _, right in values if np.isfinite(right)]
    return _accuracy_of(agree, seed=seed), _accuracy_of(model, seed=seed)


def _judgements(
    prompt: RankedPrompt, rewards: Floats
) -> Iterable[tuple[tuple[str, bytes, bytes], tuple[str, bool, float]]]:
    """Each pair by its two completions, whatever their order: who judged it, which is better, and whether the rewards
    are right."""
    keys = [ids.tobytes() for ids in prompt.completions]
    for i, first in enumerate(keys):
        for j, second in enumerate(keys):
            if first < second and prompt.levels[i] != prompt.levels[j]:
                is_first = bool(prompt.levels[i] > prompt.levels[j])
                difference = (rewards[i] - rewards[j]) * (1 if is_first else -1)
                right = float("nan") if np.isnan(difference) else (difference > 0) + 0.5 * (difference == 0)
                yield (prompt.prompt_id, first, second), (prompt.labeller, is_first, float(right))


def _accuracy_of(values: Sequence[tuple[float, int]], *, seed: int) -> Accuracy:
    return accuracy(np.array([v for v, _ in values]), np.array([n for _, n in values], dtype=np.int64), seed=seed)

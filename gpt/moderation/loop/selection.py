"""Choose the texts to label next, by the three pipelines of "Undesired Content Detection" (arXiv 2208.03274, 3.1).

- `random`: a uniform sample of the pool.
- `above:C`: for category C, a random draw from the texts with a score of at least its threshold, or from the texts with
  the highest scores (`top`). If there are too few, the next highest scores are added.
- `uncertain:C`: the texts whose score is nearest to 0.5.

The pipelines are pooled, and a text of a large metadata group gets a lower weight: a group's share is proportional to
the square root of its count. The choice is a function of scores and seed; order and split of the pool have no effect.
Memory is bounded by the number of wanted texts, so that a pool of any size can be streamed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt.moderation.loop.candidates import (
    Candidates,
    Strings,
    candidates_of,
    hashes_of,
    no_candidates,
    smallest,
    uniform,
)
from gpt.moderation.measures.ranking import Floats

RANDOM, ABOVE, UNCERTAIN = "random", "above", "uncertain"
KINDS = (RANDOM, ABOVE, UNCERTAIN)
_SECOND_DRAW = 1 << 64  # added to the seed


@dataclass(frozen=True)
class SelectionSettings:
    """What to choose: `n` texts. `shares` (of KINDS) need not sum to 1; `thresholds` are those of `above`.

    `top`: `above` draws from the `top` highest scores of each category instead of those above a threshold.
    `oversample`: pool this many times `n` texts, from which the weights of groups choose n; 1 without groups.
    """

    n: int
    categories: tuple[str, ...]
    seed: int = 0
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0)
    thresholds: tuple[float, ...] = ()
    top: int | None = None
    oversample: int = 1

    @property
    def pooled(self) -> int:
        return self.n * self.oversample

    @property
    def capacity(self) -> int:
        """Candidates a pipeline keeps: other pipelines may choose up to `pooled` of its best ones before it."""
        return 2 * self.pooled

    @property
    def pipelines(self) -> tuple[str, ...]:
        return (RANDOM, *(f"{kind}:{category}" for kind in (ABOVE, UNCERTAIN) for category in self.categories))


@dataclass(frozen=True)
class PoolState:
    """Everything that a selection keeps of the texts seen so far. `heaps`: by name of the pipeline, or `best:C`."""

    seen: int
    heaps: Mapping[str, Candidates]


@dataclass(frozen=True)
class Selected:
    """A chosen text. `weight`: the relative chance of its group's texts to be chosen from the pooled ones, mean 1."""

    id: str
    pipeline: str
    weight: float
    group: str


def empty_pool() -> PoolState:
    return PoolState(0, {})


def add_texts(
    state: PoolState, settings: SelectionSettings, ids: Sequence[str], scores: Floats, groups: Sequence[str]
) -> PoolState:
    """Return the state with some more texts: scores (n, c) are probabilities, groups (n,) one text each.

    Leave out texts that are labelled already. ValueError: a score is no probability, or shapes do not fit.
    """
    if scores.shape != (len(ids), len(settings.categories)) or len(groups) != len(ids):
        raise ValueError(f"{len(ids)} ids, scores {scores.shape}, {len(groups)} groups")
    if not ((scores >= 0) & (scores <= 1)).all():  # NaN too
        raise ValueError("a score is not a probability")
    hashes = hashes_of(ids, settings.seed)
    everything = candidates_of(np.zeros(len(ids)), hashes, ids, groups)
    parts = dict(_parts(settings, everything, scores))
    heaps = {
        name: smallest([state.heaps.get(name, no_candidates()), part], _capacity(name, settings))
        for name, part in parts.items()
    }
    return PoolState(state.seen + len(ids), heaps)


def merge_pools(first: PoolState, second: PoolState, settings: SelectionSettings) -> PoolState:
    """Return the state of two parts of a pool together. Both must have been made with these settings."""
    names = [*first.heaps, *(name for name in second.heaps if name not in first.heaps)]
    none = no_candidates()
    heaps = {
        name: smallest([first.heaps.get(name, none), second.heaps.get(name, none)], _capacity(name, settings))
        for name in names
    }
    return PoolState(first.seen + second.seen, heaps)


def select(state: PoolState, settings: SelectionSettings) -> list[Selected]:
    """Return the chosen texts in random order: `n`, or all candidates if the pool has fewer."""
    pooled = _pool(state, settings)
    if not pooled:
        return []
    groups = np.array([group for _, _, group in pooled], dtype=object)
    weights = group_weights(groups)
    # another hash than the one by which the pipelines drew, else their texts would all be unlikely
    hashes = hashes_of([text_id for text_id, _, _ in pooled], settings.seed + _SECOND_DRAW)
    # Efraimidis and Spirakis (2006): the n smallest of -log(u) / weight are a weighted sample without replacement
    order = np.argsort(-np.log(uniform(hashes)) / weights, kind="stable")[: settings.n]
    chosen = [(int(hashes[i]), Selected(pooled[i][0], pooled[i][1], float(weights[i]), pooled[i][2])) for i in order]
    return [one for _, one in sorted(chosen, key=lambda pair: (pair[0], pair[1].id))]


def group_weights(groups: Strings) -> Floats:
    """Return a weight for each text, (n,), mean 1: the sum over a group is proportional to the root of its count."""
    _, where, counts = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    weights: Floats = 1 / np.sqrt(counts[where].astype(np.float64))
    return np.asarray(weights / weights.mean())


def quotas(total: int, shares: Sequence[float]) -> list[int]:
    """Split `total` in proportion to shares, by largest remainders; of equal ones the first gets more."""
    exact = [total * share / math.fsum(shares) for share in shares]
    found = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (found[i] - exact[i], i))
    for i in by_remainder[: total - sum(found)]:
        found[i] += 1
    return found


def _parts(settings: SelectionSettings, texts: Candidates, scores: Floats) -> Iterator[tuple[str, Candidates]]:
    """Each heap's view of some texts: all texts, or those a pipeline admits, with its own keys."""
    yield RANDOM, texts
    thresholds = settings.thresholds or (0.5,) * len(settings.categories)
    for i, category in enumerate(settings.categories):
        score = scores[:, i]
        yield f"best:{category}", _keyed(texts, -score)
        if settings.top is None:
            yield f"{ABOVE}:{category}", texts.take(score >= thresholds[i])
        yield f"{UNCERTAIN}:{category}", _keyed(texts, np.abs(score - 0.5))


def _keyed(texts: Candidates, keys: Floats) -> Candidates:
    return Candidates(keys, texts.hashes, texts.ids, texts.groups)


def _capacity(name: str, settings: SelectionSettings) -> int:
    if name.startswith("best:") and settings.top is not None:
        return max(settings.capacity, settings.top)
    return settings.capacity


def _pool(state: PoolState, settings: SelectionSettings) -> list[tuple[str, str, str]]:
    """Pool the pipelines, each text once: (id, pipeline, group). `random` draws first, so it stays uniform."""
    c = len(settings.categories)
    random, above, uncertain = settings.shares
    wanted = quotas(settings.pooled, [random, *[above / c] * c, *[uncertain / c] * c])
    taken: dict[str, tuple[str, str, str]] = {}
    for name, quota in zip(settings.pipelines, wanted, strict=True):
        _take(taken, _ordered(state, settings, name), name, quota)
    _take(taken, state.heaps.get(RANDOM, no_candidates()), RANDOM, settings.pooled - len(taken))
    return list(taken.values())


def _take(taken: dict[str, tuple[str, str, str]], source: Candidates, name: str, quota: int) -> None:
    left = quota
    for text_id, group in zip(source.ids, source.groups, strict=True):
        if left <= 0:
            return
        if text_id not in taken:
            taken[text_id] = (text_id, name, group)
            left -= 1


def _ordered(state: PoolState, settings: SelectionSettings, name: str) -> Candidates:
    """A pipeline's candidates in the order in which it draws them."""
    kind, _, category = name.partition(":")
    if kind != ABOVE:
        return state.heaps.get(name, no_candidates())
    best = state.heaps.get(f"best:{category}", no_candidates())
    if settings.top is None:
        first, rest = state.heaps.get(name, no_candidates()), best
    else:
        first, rest = best.take(slice(settings.top)).by_hash(), best.take(slice(settings.top, None))
    parts = (first, rest)  # a text of both is taken once
    return Candidates(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.groups for part in parts]),
    )

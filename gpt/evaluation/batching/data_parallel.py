"""Shares requests out to data ranks, each of which has a whole model, and brings answers together; asks no model."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from gpt.inference.model import InferenceModel

T = TypeVar("T")


def data_parallel_requests(model: InferenceModel, sequences: Sequence[Sequence[int]], *, more: int = 1) -> list[int]:
    """Numbers of the token sequences that this data rank is to read; each has one that does.

    Those that begin alike stay together, so that what they share is read by one rank; shares are about equal in tokens
    that are read only once. `more`: what each sequence costs beside, in tokens.
    """
    if model.data_size == 1 or not sequences:
        return list(range(len(sequences)))
    order = sorted(range(len(sequences)), key=lambda number: tuple(sequences[number]))
    before: Sequence[int] = ()
    costs = np.zeros(len(order))
    for place, number in enumerate(order):
        tokens = sequences[number]
        costs[place] = len(tokens) - _alike(before, tokens) + more
        before = tokens
    middles = costs.cumsum() - costs / 2
    owners = (middles * model.data_size / costs.sum()).astype(int)
    return sorted(number for number, owner in zip(order, owners, strict=True) if owner == model.data_rank)


def gather_by_index(model: InferenceModel, found: dict[int, T]) -> dict[int, T]:
    """What all data ranks have found, by number. Every rank calls it."""
    return {number: one for theirs in model.gather([*found.items()]) for number, one in theirs}


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens at the beginning that two sequences have in common."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))

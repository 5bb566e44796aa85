"""Divide requests among data ranks, each of which has a whole model, and gather their results."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from gpt.inference.model import InferenceModel

T = TypeVar("T")


def data_parallel_requests(
    sequences: Sequence[Sequence[int]], *, data_rank: int, data_size: int, extra_tokens: int = 1
) -> list[int]:
    """Return the indices of the token sequences that a data rank works on. Each sequence belongs to one data rank.

    Sequences with a common prefix stay together, so that one rank reads the prefix. The ranks get about equal numbers
    of tokens, counting a common prefix once. `extra_tokens`: the cost of each sequence beyond its tokens.
    """
    if data_size == 1 or not sequences:
        return list(range(len(sequences)))
    order = sorted(range(len(sequences)), key=lambda number: tuple(sequences[number]))
    costs = np.zeros(len(order))
    previous: Sequence[int] = ()
    for i, number in enumerate(order):
        tokens = sequences[number]
        costs[i] = len(tokens) - _common_prefix(previous, tokens) + extra_tokens
        previous = tokens
    middles = costs.cumsum() - costs / 2
    owners = (middles * data_size / costs.sum()).astype(int)
    return sorted(number for number, owner in zip(order, owners, strict=True) if owner == data_rank)


def gather_by_index(model: InferenceModel, results: dict[int, T]) -> dict[int, T]:
    """Merge the results of all data ranks, by index of their request. Every rank must call it."""
    return {index: result for of_rank in model.gather([*results.items()]) for index, result in of_rank}


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))

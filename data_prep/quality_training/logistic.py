"""Logistic regression over sparse counts that lie on disk, read block by block; knows numbers, no texts or files.

The objective is Spark's: weighted mean of the log loss + l2 / 2 * |w|^2, without the bias. With `standardize`, as
Spark does by default, w are the weights of the counts divided by their standard deviations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_BLOCK = 1 << 20  # entries at once: some 32 MB of temporary arrays
_HISTORY = 20  # steps that L-BFGS remembers; more cost little beside a pass over the data


@dataclass(frozen=True)
class Examples:
    """n sparse rows: `starts` (n,) and `stops` (n,) say where row i lies in `buckets` and `counts`, which may be mapped
    files; rows lie one after another and none is empty."""

    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    buckets: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[np.int64], npt.NDArray[np.int32], Floats]]:
        """(rows, where each starts in the block, buckets, counts) for runs of rows of about _BLOCK entries."""
        first = 0
        while first < len(self.starts):
            last = max(int(np.searchsorted(self.stops, self.starts[first] + _BLOCK, side="right")), first + 1)
            begin, end = int(self.starts[first]), int(self.stops[last - 1])
            counts = self.counts[begin:end].astype(np.float64)
            yield slice(first, last), self.starts[first:last] - begin, np.asarray(self.buckets[begin:end]), counts
            first = last


@dataclass(frozen=True)
class Fit:
    """What the optimizer found: margin = counts @ weights + bias."""

    weights: Floats
    bias: float
    loss: float
    iterations: int
    converged: bool


def margins(examples: Examples, weights: Floats, bias: float) -> Floats:
    """The log odds of each row, (n,)."""
    result = np.empty(len(examples.starts))
    for rows, starts, buckets, counts in examples.blocks():
        result[rows] = np.add.reduceat(counts * weights[buckets], starts) + bias
    return result


def deviations(examples: Examples, row_weights: Floats, n_features: int) -> Floats:
    """Standard deviation of each feature over the weighted rows, whose weights sum to 1; (n_features,)."""
    first, second = np.zeros(n_features), np.zeros(n_features)
    for rows, starts, buckets, counts in examples.blocks():
        share = np.repeat(row_weights[rows], np.diff(starts, append=len(counts)))
        first += np.bincount(buckets, counts * share, n_features)
        second += np.bincount(buckets, counts * counts * share, n_features)
    return np.sqrt(np.maximum(second - first * first, 0.0))


def loss_and_gradient(
    examples: Examples, positive: npt.NDArray[np.bool_], row_weights: Floats, *, weights: Floats, bias: float
) -> tuple[float, Floats, float]:
    """(weighted log loss, its gradient by the weights, by the bias), without the penalty."""
    loss, gradient, by_bias = 0.0, np.zeros(len(weights)), 0.0
    for rows, starts, buckets, counts in examples.blocks():
        margin = np.add.reduceat(counts * weights[buckets], starts) + bias
        loss += float((row_weights[rows] * np.logaddexp(0.0, np.where(positive[rows], -margin, margin))).sum())
        error = row_weights[rows] * (sigmoid(margin) - positive[rows])
        each = np.repeat(error, np.diff(starts, append=len(counts)))
        gradient += np.bincount(buckets, counts * each, len(weights))
        by_bias += float(error.sum())
    return loss, gradient, by_bias


def fit(
    examples: Examples,
    positive: npt.NDArray[np.bool_],
    row_weights: Floats,
    *,
    n_features: int,
    l2: float,
    standardize: bool,
    max_iterations: int,
    tolerance: float,
) -> Fit:
    """Minimise by L-BFGS with a strong-Wolfe line search (torch's), on one thread, so the result can be repeated.

    `positive` (n,) are the labels, `row_weights` (n,) sum to 1. Ends when no entry of the gradient is above
    `tolerance`, or when no step helps, or after `max_iterations`. Memory: 50 vectors of n_features, and a block.
    """
    import torch

    used = np.flatnonzero(
        _seen(examples, row_weights, n_features)
    )  # the rest stays 0, and most is rest if texts are few
    scale = np.ones(len(used))
    if standardize:
        spread = deviations(examples, row_weights, n_features)[used]
        scale = np.divide(1.0, spread, out=np.zeros(len(used)), where=spread > 0)
    found = torch.zeros(len(used) + 1, dtype=torch.float64)  # weights, then the bias
    found.grad = torch.zeros_like(found)
    optimizer: Any = torch.optim.LBFGS(
        [found],
        max_iter=max_iterations,
        max_eval=4 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-14,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )
    parameters, gradient = found.numpy(), found.grad.numpy()  # the same memory
    weights = np.zeros(n_features)

    def evaluate() -> torch.Tensor:
        weights[used] = parameters[:-1] * scale
        loss, by_weights, gradient[-1] = loss_and_gradient(
            examples, positive, row_weights, weights=weights, bias=float(parameters[-1])
        )
        gradient[:-1] = by_weights[used] * scale + l2 * parameters[:-1]
        return torch.tensor(loss + 0.5 * l2 * float(np.square(parameters[:-1]).sum()), dtype=torch.float64)

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        optimizer.step(evaluate)
    finally:
        torch.set_num_threads(n_threads)
    iterations = int(optimizer.state[found]["n_iter"])
    loss = float(evaluate())
    return Fit(weights, float(parameters[-1]), loss, iterations, iterations < max_iterations)


def _seen(examples: Examples, row_weights: Floats, n_features: int) -> npt.NDArray[np.bool_]:
    """Which features occur in rows that have a weight."""
    seen = np.zeros(n_features, dtype=bool)
    for rows, starts, buckets, counts in examples.blocks():
        seen[buckets[np.repeat(row_weights[rows] > 0, np.diff(starts, append=len(counts)))]] = True
    return seen


def sigmoid(margin: Floats) -> Floats:
    """1 / (1 + exp(-margin)) without overflow."""
    small = np.exp(-np.abs(margin))
    return np.asarray(np.where(margin >= 0, 1.0, small) / (1.0 + small))

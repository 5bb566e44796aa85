"""Fit a logistic regression to sparse counts, which may be mapped files and are read block by block.

The objective is Spark's: weighted mean of the log loss + l2 / 2 * |w|^2, where w excludes the bias. With `standardize`,
Spark's default, w are the weights of the counts divided by their standard deviations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_BLOCK = 1 << 20  # entries at once: about 32 MB of temporary arrays
_HISTORY = 20  # steps that L-BFGS remembers; they cost little compared with a pass over the data


@dataclass(frozen=True)
class Examples:
    """n sparse rows: row i is the slice `starts[i]` to `stops[i]` of `buckets` and `counts`, which may be mapped files.

    `starts` (n,), `stops` (n,). Rows follow each other without gaps, and none is empty.
    """

    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    buckets: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[np.int64], npt.NDArray[np.int32], Floats]]:
        """Yield (rows, start of each within the block, buckets, counts) for runs of rows of about _BLOCK entries."""
        first = 0
        while first < len(self.starts):
            last = max(int(np.searchsorted(self.stops, self.starts[first] + _BLOCK, side="right")), first + 1)
            begin, end = int(self.starts[first]), int(self.stops[last - 1])
            counts = self.counts[begin:end].astype(np.float64)
            yield slice(first, last), self.starts[first:last] - begin, np.asarray(self.buckets[begin:end]), counts
            first = last


@dataclass(frozen=True)
class Fit:
    """Result of the optimizer: margin = counts @ weights + bias. `loss` is the objective, penalty included."""

    weights: Floats
    bias: float
    loss: float
    iterations: int
    converged: bool


def margins(examples: Examples, weights: Floats, bias: float) -> Floats:
    """Compute the log odds of each row, (n,)."""
    result = np.empty(len(examples.starts))
    for rows, starts, buckets, counts in examples.blocks():
        result[rows] = np.add.reduceat(counts * weights[buckets], starts) + bias
    return result


def deviations(examples: Examples, row_weights: Floats, n_features: int) -> Floats:
    """Compute the standard deviation of each feature over the rows, whose weights sum to 1; (n_features,)."""
    first, second = np.zeros(n_features), np.zeros(n_features)
    for rows, starts, buckets, counts in examples.blocks():
        share = np.repeat(row_weights[rows], np.diff(starts, append=len(counts)))
        first += np.bincount(buckets, counts * share, n_features)
        second += np.bincount(buckets, counts * counts * share, n_features)
    return np.sqrt(np.maximum(second - first * first, 0.0))


def loss_and_gradient(
    examples: Examples, positive: npt.NDArray[np.bool_], row_weights: Floats, *, weights: Floats, bias: float
) -> tuple[float, Floats, float]:
    """Return (weighted log loss, its gradient w.r.t. the weights, w.r.t. the bias), without the penalty."""
    loss, gradient, bias_gradient = 0.0, np.zeros(len(weights)), 0.0
    for rows, starts, buckets, counts in examples.blocks():
        margin = np.add.reduceat(counts * weights[buckets], starts) + bias
        loss += float((row_weights[rows] * np.logaddexp(0.0, np.where(positive[rows], -margin, margin))).sum())
        error = row_weights[rows] * (sigmoid(margin) - positive[rows])
        each = np.repeat(error, np.diff(starts, append=len(counts)))
        gradient += np.bincount(buckets, counts * each, len(weights))
        bias_gradient += float(error.sum())
    return loss, gradient, bias_gradient


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
    """Minimise the objective by L-BFGS.

    `positive` (n,) are the labels; `row_weights` (n,) sum to 1. Stops when no entry of the gradient is above
    `tolerance`, when no step improves the objective, or after `max_iterations`. Memory: about 50 vectors of n_features,
    and a block.
    """
    # Features that do not occur keep weight 0; with few texts that is most of them.
    used = np.flatnonzero(_seen(examples, row_weights, n_features))
    scale = np.ones(len(used))
    if standardize:
        spread = deviations(examples, row_weights, n_features)[used]
        scale = np.divide(1.0, spread, out=np.zeros(len(used)), where=spread > 0)
    weights = np.zeros(n_features)

    def objective(parameters: Floats) -> tuple[float, Floats]:
        weights[used] = parameters[:-1] * scale
        loss, gradient, bias_gradient = loss_and_gradient(
            examples, positive, row_weights, weights=weights, bias=float(parameters[-1])
        )
        penalised = gradient[used] * scale + l2 * parameters[:-1]
        return loss + 0.5 * l2 * float(np.square(parameters[:-1]).sum()), np.append(penalised, bias_gradient)

    n_parameters = len(used) + 1  # the bias comes last
    parameters, iterations = _minimise(objective, n_parameters, max_iterations=max_iterations, tolerance=tolerance)
    loss, _ = objective(parameters)
    return Fit(weights, float(parameters[-1]), loss, iterations, iterations < max_iterations)


def _minimise(
    objective: Callable[[Floats], tuple[float, Floats]], n_parameters: int, *, max_iterations: int, tolerance: float
) -> tuple[Floats, int]:
    """Minimise from 0 by torch's L-BFGS with a strong-Wolfe line search; return (parameters, iterations).

    It runs on one thread, so that the result is reproducible.
    """
    import torch

    found = torch.zeros(n_parameters, dtype=torch.float64)
    found.grad = torch.zeros_like(found)
    parameters, gradient = found.numpy(), found.grad.numpy()  # the same memory
    optimizer: Any = torch.optim.LBFGS(
        [found],
        max_iter=max_iterations,
        max_eval=4 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-14,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> torch.Tensor:
        loss, gradient[:] = objective(parameters)
        return torch.tensor(loss, dtype=torch.float64)

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        optimizer.step(evaluate)
    finally:
        torch.set_num_threads(n_threads)
    return parameters, int(optimizer.state[found]["n_iter"])


def _seen(examples: Examples, row_weights: Floats, n_features: int) -> npt.NDArray[np.bool_]:
    """Mark the features that occur in rows of positive weight, (n_features,)."""
    seen = np.zeros(n_features, dtype=bool)
    for rows, starts, buckets, counts in examples.blocks():
        seen[buckets[np.repeat(row_weights[rows] > 0, np.diff(starts, append=len(counts)))]] = True
    return seen


def sigmoid(margin: Floats) -> Floats:
    """Compute 1 / (1 + exp(-margin)) without overflow."""
    small = np.exp(-np.abs(margin))
    return np.asarray(np.where(margin >= 0, 1.0, small) / (1.0 + small))

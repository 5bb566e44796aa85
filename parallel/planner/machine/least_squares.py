"""Fit costs that cannot be negative to measured times."""

from collections.abc import Sequence

import numpy as np

ROUNDS = 20_000
PRIOR_WEIGHT = 0.05  # of an expected factor
TOLERANCE = 1e-12


def nonnegative_fit(
    rows: Sequence[Sequence[float]],
    measured: Sequence[float],
    *,
    scales: Sequence[float],
    expected: Sequence[float | None],
    prior_weight: float = PRIOR_WEIGHT,
) -> list[float]:
    """The coefficients, none below 0, whose sums over the columns of `rows` are nearest to `measured`.

    An error counts relative to the row's entry in `scales`. `expected`: a factor's value if the measurements do not
    determine it, such as 1 for kernels; None for a cost that only measurements know. `prior_weight`: of these values,
    relative to one measurement.
    """
    weights = 1.0 / np.asarray(scales, dtype=float)
    matrix = np.asarray(rows, dtype=float) * weights[:, None]
    target = np.asarray(measured, dtype=float) * weights
    for column, value in enumerate(expected):
        if value is not None:
            extra = np.zeros((1, matrix.shape[1]))
            extra[0, column] = prior_weight
            matrix, target = np.vstack([matrix, extra]), np.append(target, prior_weight * value)
    lengths = np.linalg.norm(matrix, axis=0)
    lengths[lengths == 0] = 1.0
    matrix = matrix / lengths
    gram, right = matrix.T @ matrix, matrix.T @ target
    found = np.zeros(matrix.shape[1])
    for _ in range(ROUNDS):  # coordinate descent: exact for each coefficient in turn, and 0 where it would be negative
        before = found.copy()
        for i in range(len(found)):
            if gram[i, i] > 0:
                found[i] = max(0.0, found[i] + (right[i] - gram[i] @ found) / gram[i, i])
        if float(np.abs(found - before).max()) < TOLERANCE * (1 + float(np.abs(found).max())):
            break
    return [float(value) for value in found / lengths]

"""Agreement of any number of labellers: Krippendorff's alpha and Fleiss's kappa, for one category."""

import math

import numpy as np
from numpy.typing import ArrayLike


def krippendorff_alpha(votes: ArrayLike) -> float:
    """Krippendorff's alpha for nominal data (2004, chapter 11): 1 is agreement, 0 that of chance, below 0 is worse.

    `votes` (n, r): the label of each of r labellers for each text, 1 or 0, NaN without one. Texts with fewer than
    two votes do not count. NaN without such a text, or if all votes are equal.
    """
    positive, negative = _counts(votes)
    total = positive + negative
    kept = total >= 2
    positive, negative, total = positive[kept], negative[kept], total[kept]
    n = float(total.sum())
    ones, zeros = float(positive.sum()), float(negative.sum())
    if n == 0 or ones == 0 or zeros == 0:
        return math.nan
    observed = float((2 * positive * negative / (total - 1)).sum()) / n
    expected = 2 * ones * zeros / (n * (n - 1))
    return 1 - observed / expected


def fleiss_kappa(votes: ArrayLike) -> float:
    """Fleiss's kappa (1971). `votes` (n, r) as for `krippendorff_alpha`; each text must have equally many votes.

    NaN if all votes are equal. ValueError: numbers of votes differ, or are below two.
    """
    positive, negative = _counts(votes)
    total = positive + negative
    if not len(total) or total.min() != total.max() or total[0] < 2:
        raise ValueError("each text must have the same number of votes, at least two")
    r = float(total[0])
    agreement = float(((positive**2 + negative**2 - r) / (r * (r - 1))).mean())
    p = float(positive.sum() / total.sum())
    chance = p * p + (1 - p) * (1 - p)
    return math.nan if chance == 1 else (agreement - chance) / (1 - chance)


def _counts(votes: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.asarray(votes, dtype=np.float64)
    return (matrix == 1).sum(axis=1).astype(np.float64), (matrix == 0).sum(axis=1).astype(np.float64)

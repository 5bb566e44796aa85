"""The interface of a probe to a classifier: the scores of texts."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Score = Callable[[Sequence[str]], Scores]  # n texts -> probabilities (n, c)


def checked_scores(score: Score, texts: Sequence[str]) -> Scores:
    """Return the scores (n, c) of texts. ValueError: the function gives another shape, or a NaN."""
    found = np.asarray(score(texts), dtype=np.float64)
    if found.ndim != 2 or len(found) != len(texts) or np.isnan(found).any():
        raise ValueError(f"scores of {len(texts)} texts have shape {found.shape}, or a NaN")
    return found

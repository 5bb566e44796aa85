"""Find labels that are probably wrong, from scores that the labels of a text did not train (cross-fit).

One category at a time: labels (n,) are 1, 0 or NaN (unknown), scores (n,) probabilities of a classifier that was
trained on the other half (or the other folds). Unknown labels are never flagged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt.evaluation.intervals import Interval
from gpt.moderation.loop.candidates import hashes_of
from gpt.moderation.measures.intervals import exact_interval
from gpt.moderation.measures.ranking import Floats, known

MAX_WRONG_SHARE = 0.3  # the paper's: relabel everything if more of a random part is wrong
_TOLERANCE = 1e-6  # cleanlab's, of a comparison with a mean

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class RelabelVerdict:
    """How many labels of a random part an auditor found wrong, and whether everything must be labelled again."""

    checked: int
    wrong: int
    share: Interval
    relabel_all: bool


def fold_of(ids: Sequence[str], *, folds: int = 2, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold of each text, (n,): a function of its id and the seed, so that new texts move no old one."""
    return (hashes_of(ids, seed) % np.uint64(folds)).astype(np.int64)


def suspicion(labels: ArrayLike, scores: ArrayLike) -> Floats:
    """Return how much the score contradicts the label, (n,): |label - score|, NaN where the label is unknown."""
    return np.abs(np.asarray(labels, dtype=np.float64) - np.asarray(scores, dtype=np.float64))


def disagreements(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> Flags:
    """Return where the decision `score >= threshold` is not the label: the paper's cross-fit flag, (n,)."""
    label, score = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    return np.asarray(~np.isnan(label) & ((score >= threshold) != (label == 1)))


def confident_errors(labels: ArrayLike, scores: ArrayLike) -> Flags:
    """Return labels that confident learning calls wrong (Northcutt and others, 2021, section 3), (n,).

    A text is confidently of a class if its probability of the class reaches the mean of the texts with that label; of
    two such classes the more probable one counts. A label is wrong if the text is confidently of the other class, and
    that class is also the more probable one. With one class only nothing is flagged.
    """
    label, score = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    positive, negative = label == 1, label == 0
    known(label, score)
    if not positive.any() or not negative.any():
        return np.zeros(len(label), dtype=bool)
    is_positive = score >= score[positive].mean() - _TOLERANCE
    is_negative = 1 - score >= (1 - score[negative]).mean() - _TOLERANCE
    as_positive = is_positive & (~is_negative | (score > 0.5))
    as_negative = is_negative & (~is_positive | (score <= 0.5))
    return np.asarray((negative & as_positive & (score > 0.5)) | (positive & as_negative & (score < 0.5)))


def most_suspicious(labels: ArrayLike, scores: ArrayLike, share: float) -> NDArray[np.int64]:
    """Return the texts with the most suspicious labels, the worst first: `share` of those with a known label."""
    found = suspicion(labels, scores)
    n = math.ceil(share * int((~np.isnan(found)).sum()))
    return np.argsort(np.where(np.isnan(found), -np.inf, found), kind="stable")[::-1][:n]


def relabel_verdict(labels: ArrayLike, audited: ArrayLike) -> RelabelVerdict:
    """Apply the paper's rule to a random part of the labels: label everything again if more than 30% are wrong.

    `audited`: the auditor's labels (n,); NaN, of either, does not count. The interval is exact.
    """
    first, second = np.asarray(labels, dtype=np.float64), np.asarray(audited, dtype=np.float64)
    both = ~np.isnan(first) & ~np.isnan(second)
    checked, wrong = int(both.sum()), int((first[both] != second[both]).sum())
    share = exact_interval(wrong, checked)
    return RelabelVerdict(checked, wrong, share, checked > 0 and wrong / checked > MAX_WRONG_SHARE)

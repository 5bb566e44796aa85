"""Average precision, AUROC, F1, precision and recall of one category. Unknown labels (NaN) are left out.

Shapes: n texts. `labels` (n,) holds 1, 0 or NaN (unknown), `scores` (n,) any finite numbers. `weights` (n,) counts each
text that many times, as a bootstrap does. Everything is float64. A measure that its labels do not define is NaN.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """One point for each distinct score, the highest score first. All (points,).

    A text is flagged if its score is at least `thresholds[i]`; `flagged` counts them, `hits` the positives of them.
    """

    thresholds: Floats
    flagged: Floats
    hits: Floats
    positives: float

    @property
    def precision(self) -> Floats:
        return _ratio(self.hits, self.flagged)

    @property
    def recall(self) -> Floats:
        return self.hits / self.positives if self.positives else np.full(len(self.hits), np.nan)


@dataclass(frozen=True)
class Confusion:
    """Known labels against the decision `score >= threshold`, counted."""

    true_positives: float
    false_positives: float
    false_negatives: float
    true_negatives: float

    @property
    def precision(self) -> float:
        flagged = self.true_positives + self.false_positives
        return self.true_positives / flagged if flagged else math.nan

    @property
    def recall(self) -> float:
        positives = self.true_positives + self.false_negatives
        return self.true_positives / positives if positives else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall. NaN if there is neither a positive label nor a positive decision."""
        doubled = 2 * self.true_positives
        total = doubled + self.false_positives + self.false_negatives
        return doubled / total if total else math.nan


def known(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> tuple[Floats, Floats, Floats]:
    """Return labels, scores and weights of the texts with a known label. ValueError: shapes or values are invalid."""
    label, score = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    weight = np.ones(len(label)) if weights is None else np.asarray(weights, dtype=np.float64)
    if label.ndim != 1 or not label.shape == score.shape == weight.shape:
        raise ValueError(f"shapes {label.shape}, {score.shape} and {weight.shape} must be equal and have one axis")
    kept = ~np.isnan(label)
    label, score, weight = label[kept], score[kept], weight[kept]
    if not np.isin(label, (0.0, 1.0)).all():
        raise ValueError("a label must be 0, 1 or NaN")
    if not np.isfinite(score).all():
        raise ValueError("a score is NaN or infinite")
    return label, score, weight


def precision_recall_curve(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
) -> PrecisionRecallCurve:
    """Return precision and recall at every distinct score. ValueError: as `known`."""
    label, score, weight = known(labels, scores, weights)
    order = np.argsort(-score, kind="stable")
    label, score, weight = label[order], score[order], weight[order]
    ends = np.flatnonzero(np.append(np.diff(score) != 0, True)) if len(score) else np.empty(0, dtype=np.int64)
    hits, flagged = np.cumsum(label * weight), np.cumsum(weight)
    return PrecisionRecallCurve(score[ends], flagged[ends], hits[ends], float(hits[-1]) if len(hits) else 0.0)


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Average precision (AUPRC): precision at each score, weighted by the recall gained there. NaN without positives.

    The sum of steps, not of trapezoids, which would be too optimistic (Davis and Goadrich, 2006).
    """
    curve = precision_recall_curve(labels, scores, weights)
    if curve.positives == 0:
        return math.nan
    return float(np.diff(curve.recall, prepend=0.0) @ curve.precision)


def auroc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Probability that a positive has a higher score than a negative; ties count one half. NaN with one class."""
    curve = precision_recall_curve(labels, scores, weights)
    misses = curve.flagged - curve.hits
    negatives = float(misses[-1]) if len(misses) else 0.0
    if curve.positives == 0 or negatives == 0:
        return math.nan
    hits_before = np.append(0.0, curve.hits[:-1])
    area = np.diff(misses, prepend=0.0) @ (hits_before + curve.hits) / 2
    return float(area / (curve.positives * negatives))


def confusion(labels: ArrayLike, scores: ArrayLike, threshold: float, weights: ArrayLike | None = None) -> Confusion:
    """Count hits and errors of the decision `score >= threshold`."""
    label, score, weight = known(labels, scores, weights)
    flagged, positive = score >= threshold, label == 1

    def total(chosen: NDArray[Any]) -> float:
        return float(weight[chosen].sum())

    return Confusion(
        total(flagged & positive), total(flagged & ~positive), total(~flagged & positive), total(~flagged & ~positive)
    )


def f1(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, weights: ArrayLike | None = None) -> float:
    """F1 of the decision `score >= threshold`. NaN if there is neither a positive label nor a positive decision."""
    return confusion(labels, scores, threshold, weights).f1


def any_label(labels: ArrayLike) -> Floats:
    """Combine categories, (n, c) to (n,): 1 if one is positive, 0 if all known ones are negative, else NaN."""
    matrix = np.asarray(labels, dtype=np.float64)
    positive, negative = (matrix == 1).any(axis=1), (matrix == 0).any(axis=1)
    return np.where(positive, 1.0, np.where(negative, 0.0, np.nan))


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """Divide; where the bottom is 0, which only texts of weight 0 give, the result is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)

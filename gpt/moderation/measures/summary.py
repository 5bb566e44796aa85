"""All measures of each category of a taxonomy, with intervals: the rows of a report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt.evaluation.intervals import Interval
from gpt.moderation.measures.calibration import expected_calibration_error
from gpt.moderation.measures.intervals import (
    MIN_BOOTSTRAP_POSITIVES,
    RESAMPLES,
    Measure,
    exact_interval,
    measure_interval,
)
from gpt.moderation.measures.ranking import Confusion, auroc, average_precision, confusion, f1


@dataclass(frozen=True)
class CategoryMeasures:
    """One category on n texts, of which `known` have a label. A measure that is undefined is NaN.

    AUPRC, AUROC and F1 have bootstrap intervals, or NaN bounds with fewer than MIN_BOOTSTRAP_POSITIVES positives.
    Precision and recall at the threshold have exact intervals, which hold for rare classes too.
    """

    category: str
    known: int
    positives: int
    threshold: float
    auprc: Interval
    auroc: Interval
    f1: Interval
    precision: Interval
    recall: Interval
    confusion: Confusion
    calibration_error: float


def category_measures(
    labels: NDArray[np.float64],
    scores: NDArray[np.float64],
    categories: Sequence[str],
    *,
    thresholds: Sequence[float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[CategoryMeasures]:
    """Measure every category. Labels (n, c) are 1, 0 or NaN; scores (n, c) probabilities; thresholds (c,), else 0.5."""
    chosen = [0.5] * len(categories) if thresholds is None else list(thresholds)
    if labels.shape != scores.shape or labels.shape[1:] != (len(categories),) or len(chosen) != len(categories):
        raise ValueError(f"labels {labels.shape}, scores {scores.shape}, {len(categories)} categories")
    return [
        _measured(name, labels[:, i], scores[:, i], chosen[i], resamples=resamples, seed=seed)
        for i, name in enumerate(categories)
    ]


def _measured(
    name: str,
    labels: NDArray[np.float64],
    scores: NDArray[np.float64],
    threshold: float,
    *,
    resamples: int,
    seed: int,
) -> CategoryMeasures:
    counts = confusion(labels, scores, threshold)
    hits, positives = int(counts.true_positives), int(counts.true_positives + counts.false_negatives)
    measures: tuple[Measure, ...] = (average_precision, auroc, lambda y, p, w: f1(y, p, threshold, w))
    auprc, area, f1_interval = (_interval(one, labels, scores, resamples, seed) for one in measures)
    return CategoryMeasures(
        category=name,
        known=int((~np.isnan(labels)).sum()),
        positives=positives,
        threshold=threshold,
        auprc=auprc,
        auroc=area,
        f1=f1_interval,
        precision=exact_interval(hits, int(hits + counts.false_positives)),
        recall=exact_interval(hits, positives),
        confusion=counts,
        calibration_error=expected_calibration_error(labels, scores),
    )


def _interval(
    measure: Measure, labels: NDArray[np.float64], scores: NDArray[np.float64], resamples: int, seed: int
) -> Interval:
    found = measure_interval(measure, labels, scores, resamples=resamples, seed=seed)
    if np.nansum(labels) < MIN_BOOTSTRAP_POSITIVES:
        return Interval(found.estimate, math.nan, math.nan)
    return found

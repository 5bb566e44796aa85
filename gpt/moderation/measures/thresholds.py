"""Thresholds for a wanted precision or recall, with exact intervals of both at that threshold."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from gpt.evaluation.intervals import Interval
from gpt.moderation.measures.intervals import exact_interval, exact_low_reaches
from gpt.moderation.measures.ranking import Floats, precision_recall_curve

Target = Literal["precision", "recall"]


@dataclass(frozen=True)
class Threshold:
    """A text is flagged if its score is at least `threshold`. Intervals are Clopper and Pearson's."""

    threshold: float
    wanted: str  # such as "precision 0.9"
    flagged: int
    precision: Interval
    recall: Interval


def choose_threshold(
    labels: ArrayLike, scores: ArrayLike, target: Target, wanted: float, *, sure: bool = False
) -> Threshold | None:
    """Return the threshold that reaches a precision with most recall, or a recall with most precision; else None.

    `sure`: the lower bound of the exact 95% interval must reach `wanted`, not only the estimate. The bound holds for
    one threshold that is chosen in advance; the best of many is a little optimistic, so measure it on other texts.
    Labels and scores are (n,), labels 1, 0 or NaN. ValueError: as `ranking.known`.
    """
    curve = precision_recall_curve(labels, scores)
    if not curve.positives:
        return None
    achieved = curve.precision if target == "precision" else curve.recall
    candidates = np.flatnonzero(achieved >= wanted)  # the estimate must reach it in both modes
    if sure:
        totals = curve.flagged if target == "precision" else np.full(len(achieved), curve.positives)
        candidates = np.array(
            [i for i in candidates if exact_low_reaches(int(curve.hits[i]), int(totals[i]), wanted)], dtype=np.int64
        )
    if not len(candidates):
        return None
    if target == "precision":  # the most hits; of equal ones the fewest flagged
        best = min(candidates, key=lambda i: (-curve.hits[i], curve.flagged[i]))
    else:
        best = min(candidates, key=lambda i: (-curve.precision[i], curve.flagged[i]))
    return _at(curve.thresholds, curve.hits, curve.flagged, curve.positives, int(best), f"{target} {wanted:g}")


def _at(
    thresholds: Floats, hits: Floats, flagged: Floats, positives: float, index: int, wanted: str
) -> Threshold:  # one point of the curve
    found, total = int(hits[index]), int(flagged[index])
    return Threshold(
        float(thresholds[index]), wanted, total, exact_interval(found, total), exact_interval(found, int(positives))
    )

"""All figures of the report: measures by category, curves, and what the second version gains."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.evaluation.intervals import Interval
from gpt.moderation.measures.calibration import calibration_bins
from gpt.moderation.measures.intervals import MIN_BOOTSTRAP_POSITIVES, RESAMPLES, difference_interval
from gpt.moderation.measures.ranking import any_label, average_precision, precision_recall_curve
from gpt.moderation.measures.summary import CategoryMeasures, category_measures
from launch.moderation_report.versions import ComparedVersions, ScoredVersion

ANY = "any"
CURVE_POINTS = 200


@dataclass(frozen=True)
class CategoryFigures:
    """One category of one version. `curve`: recall and precision (points, 2). `bins`: of the calibration."""

    measures: CategoryMeasures
    curve: NDArray[np.float64]
    bins: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class VersionFigures:
    """All categories of one version, "any" first: whether a text is positive in one of them."""

    name: str
    model: str
    categories: tuple[CategoryFigures, ...]


@dataclass(frozen=True)
class ReportFigures:
    """The figures of one or two versions. `gains`: by category, AUPRC of the second version minus that of the first."""

    versions: tuple[VersionFigures, ...]
    gains: tuple[Interval, ...]
    n_texts: int

    @property
    def names(self) -> list[str]:
        return [one.measures.category for one in self.versions[0].categories]


def measure(compared: ComparedVersions, *, resamples: int = RESAMPLES) -> ReportFigures:
    """Compute everything. Takes about a second for each thousand texts and eight categories."""
    figures = tuple(_version(compared, version, resamples) for version in compared.versions)
    gains: tuple[Interval, ...] = ()
    if len(figures) == 2:
        labels = np.column_stack([any_label(compared.labels), compared.labels])
        first, second = (_with_any(compared.scores(version)) for version in compared.versions)
        gains = tuple(
            _gain(labels[:, i], first[:, i], second[:, i], resamples=resamples) for i in range(labels.shape[1])
        )
    return ReportFigures(figures, gains, len(compared.ids))


def as_json(figures: ReportFigures) -> dict[str, Any]:
    """The figures for programs; curves are left out, because the score files have them."""
    versions = [
        {
            "name": version.name,
            "model": version.model,
            "categories": [{**asdict(one.measures), "calibration": list(one.bins)} for one in version.categories],
        }
        for version in figures.versions
    ]
    gains = {name: asdict(gain) for name, gain in zip(figures.names, figures.gains, strict=False)}
    return {"texts": figures.n_texts, "versions": versions, "auprc_gain": gains}


def _version(compared: ComparedVersions, version: ScoredVersion, resamples: int) -> VersionFigures:
    labels, scores = compared.labels, compared.scores(version)
    measured = category_measures(
        labels, scores, compared.taxonomy.ids, thresholds=version.thresholds, resamples=resamples
    )
    both, best = any_label(labels), np.asarray(scores.max(axis=1), dtype=np.float64)
    flagged = np.asarray((scores >= np.array(version.thresholds)).any(axis=1), dtype=np.float64)
    ranked, decided = (
        category_measures(both[:, None], column[:, None], [ANY], resamples=resamples)[0] for column in (best, flagged)
    )
    decisions = {name: getattr(decided, name) for name in ("f1", "precision", "recall", "confusion")}
    found = [_figures(both, best, replace(ranked, **decisions))]
    found += [_figures(labels[:, i], scores[:, i], one) for i, one in enumerate(measured)]
    return VersionFigures(version.name, version.model, tuple(found))


def _figures(labels: NDArray[np.float64], scores: NDArray[np.float64], measures: CategoryMeasures) -> CategoryFigures:
    curve = precision_recall_curve(labels, scores)
    points = np.column_stack([curve.recall, curve.precision]) if measures.positives else np.empty((0, 2))
    if len(points) > CURVE_POINTS:
        points = points[np.unique(np.linspace(0, len(points) - 1, CURVE_POINTS).astype(int))]
    return CategoryFigures(measures, points, tuple(calibration_bins(labels, scores, bins=10)))


def _with_any(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([scores.max(axis=1), scores])


def _gain(
    labels: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64], *, resamples: int
) -> Interval:
    found = difference_interval(average_precision, labels, first, second, resamples=resamples)
    few = np.nansum(labels) < MIN_BOOTSTRAP_POSITIVES
    return Interval(found.estimate, np.nan, np.nan) if few else found


def best_and_worst(figures: ReportFigures) -> Sequence[CategoryMeasures]:
    """The categories with the highest and the lowest AUPRC of the newest version, "any" left out."""
    known = [one.measures for one in figures.versions[-1].categories[1:] if one.measures.auprc.estimate >= 0]
    ordered = sorted(known, key=lambda one: one.auprc.estimate, reverse=True)
    return [ordered[0], ordered[-1]] if ordered else []

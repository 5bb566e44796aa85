"""The audit of labels (arXiv 2208.03274, 3.2): texts for an auditor, and F1 of the labels against the auditor's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt.evaluation.intervals import Interval
from gpt.moderation.loop.candidates import hashes_of
from gpt.moderation.measures.intervals import MIN_BOOTSTRAP_POSITIVES, exact_interval, measure_interval
from gpt.moderation.measures.ranking import Confusion, Floats, confusion, f1

PER_CATEGORY = 10


@dataclass(frozen=True)
class AuditedText:
    """A text for the auditor. `reason`: "labelled:C", positive by its label, or "scored:C", by its score."""

    id: str
    reason: str


@dataclass(frozen=True)
class CategoryAudit:
    """The labels of a category against the auditor's. F1, precision and recall are NaN where undefined."""

    category: str
    audited: int
    confusion: Confusion
    f1: Interval
    precision: Interval
    recall: Interval


def audit_sample(
    ids: Sequence[str],
    labels: Floats,
    scores: Floats | None,
    categories: Sequence[str],
    *,
    per_category: int = PER_CATEGORY,
    seed: int = 0,
) -> list[AuditedText]:
    """Choose for each category `per_category` labelled positives, and as many others with a score above 0.5.

    Labels and scores are (n, c); without scores only labelled positives are chosen. A text appears once; those of one
    category are drawn at random by the hash of their ids. Rare events decide F1, so plain accuracy of a random sample
    would say little.
    """
    hashes = hashes_of(ids, seed)
    order = np.argsort(hashes, kind="stable")
    found: dict[str, AuditedText] = {}
    for i, category in enumerate(categories):
        sources = [("labelled", labels[:, i] == 1)]
        if scores is not None:
            sources.append(("scored", (scores[:, i] > 0.5) & (labels[:, i] != 1)))
        for reason, eligible in sources:
            chosen = [ids[j] for j in order if eligible[j] and ids[j] not in found][:per_category]
            found |= {name: AuditedText(name, f"{reason}:{category}") for name in chosen}
    return list(found.values())


def category_audits(
    labels: Floats, audited: Floats, categories: Sequence[str], *, seed: int = 0
) -> list[CategoryAudit]:
    """Compare labels with the auditor's, both (n, c) of the same texts: 1, 0 or NaN. The auditor is taken as right.

    F1 has a bootstrap interval, with NaN bounds for few positives; precision and recall have exact ones.
    """
    if labels.shape != audited.shape or labels.shape[1:] != (len(categories),):
        raise ValueError(f"labels {labels.shape}, audited {audited.shape}, {len(categories)} categories")
    return [_audit(name, labels[:, i], audited[:, i], seed=seed) for i, name in enumerate(categories)]


def _audit(category: str, labels: NDArray[np.float64], audited: NDArray[np.float64], *, seed: int) -> CategoryAudit:
    both = ~np.isnan(labels) & ~np.isnan(audited)
    truth, given = audited[both], labels[both]
    counts = confusion(truth, given, 0.5)
    hits, positives = int(counts.true_positives), int(truth.sum())
    found = measure_interval(lambda y, p, w: f1(y, p, 0.5, w), truth, given, seed=seed)
    if positives < MIN_BOOTSTRAP_POSITIVES:
        found = Interval(found.estimate, np.nan, np.nan)
    return CategoryAudit(
        category=category,
        audited=int(both.sum()),
        confusion=counts,
        f1=found,
        precision=exact_interval(hits, int(given.sum())),
        recall=exact_interval(hits, positives),
    )

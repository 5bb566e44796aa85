"""The learning curve: the AUPRC of each round's classifier against the number of labels that trained it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt.errors import ConfigError
from gpt.evaluation.intervals import Interval
from gpt.moderation.label_files import read_labelled
from gpt.moderation.labels import merged
from gpt.moderation.measures.intervals import MIN_BOOTSTRAP_POSITIVES, RESAMPLES, measure_interval
from gpt.moderation.measures.ranking import any_label, average_precision
from gpt.moderation.taxonomy import Taxonomy
from launch.moderation_report.measured import ANY
from launch.moderation_report.versions import compare, read_version


@dataclass(frozen=True)
class Round:
    """A round of labelling: the number of labelled texts, and the AUPRC by category, "any" first."""

    labels: int
    auprc: tuple[tuple[str, Interval], ...]


def read_rounds(
    pairs: Sequence[tuple[str, Path]], labels: Sequence[Path], taxonomy: Taxonomy, *, resamples: int = RESAMPLES
) -> list[Round]:
    """Measure the scores of each round on the same labelled texts; the round with fewest labels first.

    `pairs`: a number of labels, or a file of them, and the scores. ConfigError: a file cannot be read, or the scores
    have none of the labelled texts.
    """
    found = []
    counts = [_count(given, taxonomy) for given, _ in pairs]
    for n_labels, (_, path) in zip(counts, pairs, strict=True):
        version = read_version(path, taxonomy, name=path.stem, thresholds={})
        compared = compare([version], labels, taxonomy)
        scores = compared.scores(version)
        columns = [(ANY, any_label(compared.labels), scores.max(axis=1))]
        columns += [(name, compared.labels[:, i], scores[:, i]) for i, name in enumerate(taxonomy.ids)]
        auprc = []
        for name, label, score in columns:
            interval = measure_interval(average_precision, label, score, resamples=resamples)
            few = np.nansum(label) < MIN_BOOTSTRAP_POSITIVES
            auprc.append((name, Interval(interval.estimate, np.nan, np.nan) if few else interval))
        found.append(Round(n_labels, tuple(auprc)))
    return sorted(found, key=lambda one: one.labels)


def _count(given: str, taxonomy: Taxonomy) -> int:
    """The number of labels: given as one, or counted in a file."""
    if given.isascii() and given.isdecimal() and len(given) < 16:
        return int(given)
    if not Path(given).is_file():
        raise ConfigError(f"--round {given} is neither a number of labels nor a file of them. Give one of the two.")
    return sum(bool(one.labels) for one in merged(read_labelled(Path(given), taxonomy)))

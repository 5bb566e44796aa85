"""Versions of a classifier on the same labelled texts: their scores and thresholds, row by row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.files.json_files import read_json_object
from gpt.moderation.label_files import read_labelled
from gpt.moderation.labels import LabelledText, label_matrix
from gpt.moderation.score_files import all_scores
from gpt.moderation.taxonomy import Taxonomy, read_taxonomy
from launch.moderation.loop.joined import common, labelled_texts, summary_of, taxonomy_of

if TYPE_CHECKING:
    from launch.moderation.classifier import OpenedClassifier

THRESHOLD = 0.5


@dataclass(frozen=True)
class ScoredVersion:
    """A version's scores by the id of a text, each (c,), and the thresholds of its decisions (c,)."""

    name: str
    scores: Mapping[str, NDArray[np.float64]]
    thresholds: tuple[float, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)  # of the summary: model, calibrated and so on

    @property
    def model(self) -> str:
        return str(self.facts.get("model") or "")


@dataclass(frozen=True)
class ComparedVersions:
    """Versions on the texts that have labels and scores of all. Labels (n, c) are 1, 0 or NaN."""

    taxonomy: Taxonomy
    versions: tuple[ScoredVersion, ...]
    ids: tuple[str, ...]
    labels: NDArray[np.float64]
    without_scores: int  # labelled texts that some version has not scored
    contradictory: int  # texts whose labels contradict the parents; those labels count as unknown

    def scores(self, version: ScoredVersion) -> NDArray[np.float64]:
        """The scores (n, c) of one version."""
        return np.stack([version.scores[one] for one in self.ids])


def read_version(path: Path, taxonomy: Taxonomy, *, name: str, thresholds: Mapping[str, float]) -> ScoredVersion:
    """Read a score file and its summary. ConfigError: the file is not a score file, or a record
    lacks a category."""
    batch = all_scores([path], taxonomy.ids)
    chosen = tuple(thresholds.get(one, THRESHOLD) for one in taxonomy.ids)
    return ScoredVersion(name, dict(zip(batch.ids, batch.scores, strict=True)), chosen, summary_of(path))


def open_runs(paths: Sequence[Path]) -> "dict[Path, OpenedClassifier]":
    """Open the paths that are folders as runs, in this process alone. ConfigError: no classifier run."""
    found = {}
    for path in paths:
        if path.is_dir():
            from launch.moderation.open_run import load_classifier  # with torch, which score files do not need

            found[path] = load_classifier(path, packs=True)
    return found


def score_run(run: "OpenedClassifier", labels: Sequence[Path], taxonomy: Taxonomy, *, name: str) -> ScoredVersion:
    """Score the labelled texts with a run, by its own calibration and thresholds.

    ConfigError: its categories are not those of the taxonomy.
    """
    if run.categories != taxonomy.ids:
        raise ConfigError(
            f"{name} has the categories of {run.taxonomy.label}, not of {taxonomy.label}. Use one of them."
        )
    texts = {one.id: one.text for path in labels for one in read_labelled(path, taxonomy) if one.labels}
    scores = dict(zip(texts, run.scores(list(texts.values())), strict=True))
    chosen = tuple(run.thresholds.get(one, THRESHOLD) for one in taxonomy.ids)
    return ScoredVersion(name, scores, chosen, {"model": run.version, "run": str(run.run.run_directory)})


def compare(versions: Sequence[ScoredVersion], labels: Sequence[Path], taxonomy: Taxonomy) -> ComparedVersions:
    """Join versions with the labels of all files, labellers merged.

    ConfigError: a file of labels cannot be read, or no labelled text has scores of all versions.
    """
    texts = [one for one in labelled_texts(labels, taxonomy) if one.labels]
    where = f"--labels {labels[0]}: there are no scores of {{}}. Score these, with their ids."
    joined = common(texts, *(version.scores for version in versions), where=where)
    matrix = label_matrix(joined, taxonomy, contradictory="unknown")
    return ComparedVersions(
        taxonomy=taxonomy,
        versions=tuple(versions),
        ids=tuple(one.id for one in joined),
        labels=matrix,
        without_scores=len(texts) - len(joined),
        contradictory=_contradictory(joined, matrix, taxonomy),
    )


def read_thresholds(path: Path | None, taxonomy: Taxonomy) -> dict[str, float]:
    """Read the thresholds of `moderate calibrate`, 0.5 where none is given. ConfigError: a value is no probability."""
    found = {} if path is None else read_json_object(path)
    for name, value in found.items():
        if name not in taxonomy.ids:
            raise ConfigError(f"{path}: {name} is no category of {taxonomy.label}. Use {', '.join(taxonomy.ids)}.")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(f"{path}: the threshold of {name} must be a number from 0 to 1.")
    return {name: float(value) for name, value in found.items()}


def find_taxonomy(
    given: Path | None, scores: Sequence[Path], runs: "Mapping[Path, OpenedClassifier]" = MappingProxyType({})
) -> Taxonomy:
    """The taxonomy that is named, else that of a run, else that of the scores. ConfigError: as `taxonomy_of`."""
    if given is not None:
        return read_taxonomy(given)
    if runs:
        return next(iter(runs.values())).taxonomy
    return taxonomy_of(None, scores)


def _contradictory(texts: Sequence[LabelledText], matrix: NDArray[np.float64], taxonomy: Taxonomy) -> int:
    """The number of texts of which `label_matrix` has made a given label unknown."""
    given = np.array([[name in one.labels for name in taxonomy.ids] for one in texts])
    return int((given & np.isnan(matrix)).any(axis=1).sum())

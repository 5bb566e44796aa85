"""Join labelled texts and files of scores by the ids of the texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.files.json_files import read_json_object
from gpt.moderation.label_files import read_labelled
from gpt.moderation.labels import LabelledText, label_matrix, merged
from gpt.moderation.score_files import all_scores
from gpt.moderation.taxonomy import Taxonomy


@dataclass(frozen=True)
class LabelledScores:
    """Texts with labels and scores, both (n, c): labels 1, 0 or NaN, scores probabilities."""

    texts: list[LabelledText]
    labels: NDArray[np.float64]
    scores: NDArray[np.float64]
    unlabelled: int  # scores without a label, left out
    unscored: int  # labelled texts without a score, left out


def labelled_texts(paths: Sequence[Path], taxonomy: Taxonomy) -> list[LabelledText]:
    """Return the labelled texts of all files, labellers merged. ConfigError: as `read_labelled` and `merged`."""
    return merged(one for path in paths for one in read_labelled(path, taxonomy))


def summary_of(path: Path) -> dict[str, Any]:
    """The summary that `moderate score` writes beside its file; empty if there is none."""
    name = path.name.removesuffix(".gz")
    summary = path.with_name(name.rpartition(".")[0] + ".summary.json")
    return read_json_object(summary) if summary.is_file() else {}


def joined(texts: Sequence[LabelledText], scores: Sequence[Path], taxonomy: Taxonomy) -> LabelledScores:
    """Return the texts that have labels and scores, in the order of `texts`. ConfigError: none, or a damaged file."""
    found = all_scores(scores, taxonomy.ids)
    row = {name: i for i, name in enumerate(found.ids)}
    kept = [one for one in texts if one.id in row]
    if not kept:
        raise ConfigError(
            f"no labelled text has a score: no id of the labels is an id of {scores[0]}. Score the labelled texts."
        )
    return LabelledScores(
        kept,
        label_matrix(kept, taxonomy),
        found.scores[[row[one.id] for one in kept]],
        len(row) - len(kept),
        len(texts) - len(kept),
    )


def common(
    texts: Sequence[LabelledText], others: Mapping[str, LabelledText]
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Return the texts that both have, in the order of the first."""
    kept = [one for one in texts if one.id in others]
    return kept, [others[one.id] for one in kept]

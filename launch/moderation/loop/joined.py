"""Join labelled texts and files of scores by the ids of the texts."""

from collections.abc import Collection, Sequence
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
from gpt.moderation.taxonomy import Taxonomy, parse_taxonomy, read_taxonomy, shipped_taxonomies


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
    """The summary that `moderate score` writes next to its file; empty if there is none."""
    name = path.name.removesuffix(".gz")
    summary = path.with_name(name.rpartition(".")[0] + ".summary.json")
    return read_json_object(summary) if summary.is_file() else {}


def taxonomy_of(given: Path | None, scores: Sequence[Path]) -> Taxonomy:
    """The taxonomy that is named, else that in a summary of the scores, else the shipped one with its digest.

    ConfigError: there is none, or a summary is damaged.
    """
    if given is not None:
        return read_taxonomy(given)
    summaries = {path: summary_of(path) for path in scores}
    for path, summary in summaries.items():
        if isinstance(content := summary.get("taxonomy_content"), dict):
            return parse_taxonomy(content, where=f"the summary of {path}: taxonomy_content")
    digests = {summary.get("taxonomy_digest") for summary in summaries.values()}
    for shipped in shipped_taxonomies().values():
        taxonomy = read_taxonomy(shipped)
        if taxonomy.digest in digests:
            return taxonomy
    raise ConfigError(f"--taxonomy is missing, and no summary beside {scores[0]} has one. Give its file.")


def joined(texts: Sequence[LabelledText], scores: Sequence[Path], taxonomy: Taxonomy) -> LabelledScores:
    """Return the texts that have labels and scores, in the order of `texts`. ConfigError: none, or a damaged file."""
    found = all_scores(scores, taxonomy.ids)
    row = {name: i for i, name in enumerate(found.ids)}
    kept = common(texts, row, where=f"{scores[0]} has no score of {{}}. Score these, with their ids.")
    return LabelledScores(
        kept,
        label_matrix(kept, taxonomy),
        found.scores[[row[one.id] for one in kept]],
        len(row) - len(kept),
        len(texts) - len(kept),
    )


def common(texts: Sequence[LabelledText], *others: Collection[str], where: str) -> list[LabelledText]:
    """The texts whose ids are in all others, in their order: how labels meet scores and further labels.

    ConfigError: none is; `where` says so, with {} for the texts.
    """
    kept = [one for one in texts if all(one.id in ids for ids in others)]
    if not kept:
        raise ConfigError(where.replace("{}", f"the {len(texts):,} labelled texts"))
    return kept

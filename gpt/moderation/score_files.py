"""Read score files: one record a text, with its id and the probability of each category. No torch.

A record is `{"id", "scores": {category: p}, "text", "groups", ...}`; `triaxial moderate score` writes them. Forms: JSON
lines, packed or not, and Parquet. No error quotes a text.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.moderation.label_files import read_records

BATCH = 4096


@dataclass(frozen=True)
class ScoreBatch:
    """Some records in the order of the file: ids (n,), scores (n, c), groups (n,), and all fields (n,)."""

    ids: list[str]
    scores: NDArray[np.float64]
    groups: list[Mapping[str, str]]
    records: list[dict[str, Any]]


def score_categories(path: Path) -> tuple[str, ...]:
    """Return the categories of a score file's first record, in its order. ConfigError: the file has no record."""
    for place, record in read_records(path):
        return tuple(_scores_of(record, where=f"{path}, {place}"))
    raise ConfigError(f"{path} has no scores. Write some with `triaxial moderate score`.")


def read_scores(path: Path, categories: Sequence[str], *, batch: int = BATCH) -> Iterator[ScoreBatch]:
    """Yield the records of a score file, `batch` at a time.

    ConfigError: the file cannot be read, or a record lacks an id or a probability of one of the categories.
    """
    found: list[tuple[str, list[float], Mapping[str, str], dict[str, Any]]] = []
    for place, record in read_records(path):
        where = f"{path}, {place}"
        own = record.get("id")
        if not isinstance(own, str | int) or isinstance(own, bool) or not str(own):
            raise ConfigError(f"{where} has no id. Write scores with `triaxial moderate score`.")
        scores = _scores_of(record, where=where)
        row = [_probability(scores.get(name), name, where=where) for name in categories]
        found.append((str(own), row, groups_of(record, where=where), record))
        if len(found) == batch:
            yield _batch(found, len(categories))
            found = []
    if found:
        yield _batch(found, len(categories))


def all_scores(paths: Sequence[Path], categories: Sequence[str]) -> ScoreBatch:
    """Return the records of all files in one batch. ConfigError: as `read_scores`, or an id occurs twice."""
    batches = [batch for path in paths for batch in read_scores(path, categories)]
    ids = [one for batch in batches for one in batch.ids]
    if twice := next((one for one, count in Counter(ids).items() if count > 1), None):
        raise ConfigError(f"id '{twice}' has two records of scores. Give each text once.")
    scores = np.concatenate([np.empty((0, len(categories))), *(batch.scores for batch in batches)])
    groups = [one for batch in batches for one in batch.groups]
    return ScoreBatch(ids, scores, groups, [one for batch in batches for one in batch.records])


def groups_of(record: Mapping[str, Any], *, where: str) -> Mapping[str, str]:
    """Return the groups of a record, which Parquet may hold as JSON or as pairs. ConfigError: they are no names."""
    value = record.get("groups")
    if isinstance(value, str):
        try:
            value = decode_json(value)
        except ValueError:
            value = ()
    if isinstance(value, list):
        value = dict(value) if all(isinstance(pair, tuple) and len(pair) == 2 for pair in value) else ()
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f'{where}: groups must be an object of texts, such as {{"language": "en"}}.')
    return {str(name): str(one) for name, one in value.items() if one is not None}


def _scores_of(record: Mapping[str, Any], *, where: str) -> Mapping[str, Any]:
    scores = record.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise ConfigError(f"{where} has no scores. Write some with `triaxial moderate score`.")
    return scores


def _probability(value: Any, category: str, *, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 or math.isnan(value):
        raise ConfigError(f"{where}: the score of '{category}' must be a number from 0 to 1.")
    return float(value)


def _batch(found: list[tuple[str, list[float], Mapping[str, str], dict[str, Any]]], width: int) -> ScoreBatch:
    scores = np.array([row for _, row, _, _ in found], dtype=np.float64).reshape(len(found), width)
    return ScoreBatch([a for a, _, _, _ in found], scores, [c for _, _, c, _ in found], [d for *_, d in found])

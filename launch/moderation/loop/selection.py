"""Select texts from score files of any size: two passes, the first one resumable file by file."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.files.json_files import read_json_object
from gpt.moderation.label_files import read_records
from gpt.moderation.labels import text_id
from gpt.moderation.loop.candidates import candidates_json, read_candidates
from gpt.moderation.loop.selection import PoolState, Selected, SelectionSettings, add_texts, empty_pool
from gpt.moderation.score_files import read_scores

_MAX_STATE_BYTES = 1 << 30


def pool_of(
    paths: Sequence[Path],
    settings: SelectionSettings,
    *,
    labelled: frozenset[str],
    group_by: str | None,
    state_file: Path,
) -> tuple[PoolState, int]:
    """Read all score files. After each one the state is saved, and a later call with equal arguments continues there.

    Texts whose id is in `labelled` are left out; the second result is their number. `group_by`: the metadata group that
    weights texts. ConfigError: as `read_scores`, or a category is missing in a file.
    """
    key = _key(settings, labelled, group_by)
    state, n_labelled, done = _resumed(state_file, key)
    if any(one not in map(_identity, paths) for one in done):  # a file has changed, or is no longer given
        state, n_labelled, done = empty_pool(), 0, []
    for path in paths:
        identity = _identity(path)
        if identity in done:
            continue
        for batch in read_scores(path, settings.categories):
            kept = [i for i, one in enumerate(batch.ids) if one not in labelled]
            groups = [batch.groups[i].get(group_by, "") if group_by else "" for i in kept]
            state = add_texts(state, settings, [batch.ids[i] for i in kept], batch.scores[kept], groups)
            n_labelled += len(batch.ids) - len(kept)
        done.append(identity)
        _save(state_file, key, state, n_labelled, done)
    return state, n_labelled


def selected_records(paths: Sequence[Path], selected: Sequence[Selected]) -> Iterator[dict[str, Any]]:
    """Yield the records of the selected texts in their order, each with its `pipeline` and `weight`."""
    wanted = {one.id: one for one in selected}
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for _, record in read_records(path):
            own = str(record.get("id"))
            if own in wanted and own not in found:
                found[own] = record
    for one in selected:
        yield {**found[one.id], "pipeline": one.pipeline, "weight": round(one.weight, 6)}


def labelled_ids(paths: Sequence[Path]) -> frozenset[str]:
    """Return the ids of the texts in labelled files; a text without an id has the id of its characters.

    Skipped texts count too: nobody wants to see them again. ConfigError: a file cannot be read.
    """
    found = set()
    for path in paths:
        for place, record in read_records(path):
            text = record.get("text", record.get("prompt"))
            if record.get("id") is None and not isinstance(text, str):
                raise ConfigError(f"{path}, {place} has neither an id nor a text.")
            found.add(text_id(str(text)) if record.get("id") is None else str(record["id"]))
    return frozenset(found)


def _key(settings: SelectionSettings, labelled: frozenset[str], group_by: str | None) -> str:
    values = json.dumps([asdict(settings), sorted(labelled), group_by], sort_keys=True)
    return hashlib.sha256(values.encode("utf-8", "surrogatepass")).hexdigest()


def _identity(path: Path) -> list[Any]:
    try:
        found = path.stat()
    except OSError:
        return [str(path), -1, -1]  # the reader explains what is wrong with it
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _resumed(state_file: Path, key: str) -> tuple[PoolState, int, list[list[Any]]]:
    """The saved state of an interrupted selection with the same arguments, or an empty one; its labelled texts, its
    files."""
    if not state_file.exists():
        return empty_pool(), 0, []
    saved = read_json_object(state_file, max_bytes=_MAX_STATE_BYTES)
    if saved.get("key") != key:
        return empty_pool(), 0, []
    with suppress(KeyError, TypeError, AttributeError):
        heaps = {str(name): read_candidates(one, where=str(state_file)) for name, one in saved["heaps"].items()}
        return PoolState(int(saved["seen"]), heaps), int(saved["labelled"]), list(saved["files"])
    raise ConfigError(f"{state_file} is damaged: remove it to start the selection again.")


def _save(state_file: Path, key: str, state: PoolState, n_labelled: int, done: list[list[Any]]) -> None:
    heaps = {name: candidates_json(one) for name, one in state.heaps.items()}
    values = {"key": key, "files": done, "seen": state.seen, "labelled": n_labelled, "heaps": heaps}
    replace_file(state_file, json.dumps(values))


def mean_scores(records: Sequence[dict[str, Any]], categories: Sequence[str]) -> dict[str, float]:
    """Return the mean score of each category over some records: what share of positives to expect."""
    return {name: float(np.mean([one["scores"][name] for one in records])) if records else 0.0 for name in categories}

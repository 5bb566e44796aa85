"""Find out what happened to a document, or to those of a file, in a run, from the traces and the last shards."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.read import read_file as read_conversations
from data_prep.conversations.read import read_task
from data_prep.documents.shards import DamagedShardError, Document, parent_id, read_shard
from data_prep.documents.traces import Drop, read_trace
from data_prep.execution.shard_runs import Step, Steps, read_steps
from data_prep.inputs.config import InputConfig
from data_prep.labels.config import LabelsConfig
from data_prep.labels.read import label_read_task
from data_prep.labels.read import read_file as read_labels
from data_prep.readers.readers import read_records
from gpt.errors import ConfigError


@dataclass(frozen=True)
class Fate:
    """A document's way through a run: dropped at a step, or kept, maybe in pieces, as the last step wrote it."""

    steps: tuple[str, ...]  # the ones it passed
    dropped: Drop | None
    kept: tuple[Document, ...]
    shard: Path  # the trace or the shard that shows it
    finished: bool = True  # False: the run is not complete, and later steps may still drop it


Progress = Callable[[int, int], object]  # is called with the files that are read, and their number


def unseen(done: int, total: int) -> None:
    """Show no progress."""


def watched(paths: Sequence[Path], progress: Progress) -> Iterator[Path]:
    """The paths one after the other, each reported when the next is asked for."""
    for done, path in enumerate(paths, 1):
        yield path
        progress(done, len(paths))


def explain(work: Path, document_id: str, progress: Progress = unseen) -> list[Fate]:
    """Find every document with this id in the work folder's last run; several input records may share an id.

    Reads the traces of all steps and the shards of the last one. ConfigError: no run yet, or no such document.
    """
    wanted = document_id.strip("<>")
    fates = _fates(work, read_steps(work), {wanted}, progress)
    if not fates:
        raise ConfigError(
            f"no document '{wanted}' was read or dropped by the last run in {work}. Give an input file, or an id: that "
            "of the record (WARC-Record-ID, the id field of JSON lines), or, if it has none, 'text:' or 'warc:' and a "
            "digest"
        )
    return fates


def explain_file(
    work: Path,
    path: Path,
    config: InputConfig,
    conversations: ConversationsConfig | None = None,
    *,
    labels: LabelsConfig | None = None,
    progress: Progress = unseen,
) -> list[Fate]:
    """Find what happened to the documents of an input file. ConfigError: no run yet, or it read none of them."""
    if conversations is not None:
        ids = _ids_in(path, read_conversations, read_task(config, conversations))
    elif labels is not None:
        ids = _ids_in(path, read_labels, label_read_task(config, labels))
    else:
        ids = {record.id for record in read_records(path, config)}
    if not ids:
        raise ConfigError(f"{path}: the file holds no documents")
    fates = _fates(work, read_steps(work), ids, progress)
    if not fates:
        raise ConfigError(f"{path}: none of its {len(ids):,} documents was read by the last run in {work}")
    return fates


def _ids_in(path: Path, read: Callable[..., Any], task: Any) -> set[str]:
    """Return the ids of what a file holds by a reading stage: of its documents, and of what is dropped there."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "shard"), Path(folder, "trace")
        read(task, (path,), outputs)
        return {*(one.id for one in read_shard(outputs[0])), *(drop.id for drop in read_trace(outputs[1]))}


def explain_url(work: Path, url: str, progress: Progress = unseen) -> list[Fate]:
    """Find what happened to the pages of a URL, as the archive or the field `url` gives it. ConfigError: as explain."""
    steps = read_steps(work)
    try:  # the shards of the first step may be removed by now
        ids = {
            document.id for step in (steps.done[0], steps.done[-1]) for document in _of_url(work, step, url, progress)
        }
    except DamagedShardError as error:
        raise ConfigError(f"{error}. Run `triaxial prepare` again") from None
    fates = _fates(work, steps, ids, progress)
    if not fates:
        raise ConfigError(
            f"no document with the URL {url} passed the first step of the last run in {work}. Give the id of a record "
            "that was dropped there, or an input file"
        )
    return fates


def _of_url(work: Path, step: Step, url: str, progress: Progress) -> Iterator[Document]:
    for path in watched(step.shards(work), progress):
        if path.exists() and path.name.endswith(".jsonl.zst"):
            yield from (document for document in read_shard(path) if document.metadata.get("url") == url)


def _fates(work: Path, about: Steps, wanted: set[str], progress: Progress) -> list[Fate]:
    try:
        return [*_dropped(work, about, wanted), *_survivors(work, about, wanted, progress)]
    except DamagedShardError as error:
        raise ConfigError(f"{error}. Run `triaxial prepare` again") from None


def _dropped(work: Path, about: Steps, wanted: set[str]) -> list[Fate]:
    fates: list[Fate] = []
    steps = about.done
    for number, step in enumerate(steps):
        passed = tuple(earlier.stage for earlier in steps[:number])
        for path in step.traces(work):
            fates += [Fate(passed, drop, (), path) for drop in _drops(path) if _is_of(drop.id, wanted)]
    return fates


def _drops(path: Path) -> list[Drop]:
    return list(read_trace(path)) if path.exists() else []  # an incomplete run does not have all of them


def _survivors(work: Path, steps: Steps, wanted: set[str], progress: Progress) -> list[Fate]:
    passed = tuple(step.stage for step in steps.done)
    fates = []
    for path in watched(steps.done[-1].shards(work), progress):
        if path.exists() and path.name.endswith(".jsonl.zst"):
            kept: dict[str, list[Document]] = {}
            for document in read_shard(path):
                if _is_of(document.id, wanted):
                    name = document.id if document.id in wanted else parent_id(document.id)
                    kept.setdefault(name, []).append(document)
            fates += [Fate(passed, None, tuple(found), path, steps.finished) for found in kept.values()]
    return fates


def _is_of(document_id: str, wanted: set[str]) -> bool:
    """Return whether the id is a wanted one, or that of a piece that decontamination cut from such a document."""
    return document_id in wanted or parent_id(document_id) in wanted

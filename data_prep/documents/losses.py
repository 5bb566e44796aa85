"""Estimate how many records the unreadable parts of a file hold."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.documents.records import Dropped


@dataclass(frozen=True)
class FileLoss:
    """The unreadable parts of one input file: bytes of the file, and records, None if unknown.

    `reason` and `detail` are those of the largest part.
    """

    path: str
    file_bytes: int
    unread_bytes: int
    records: int | None
    reason: str
    detail: str


def estimate_loss(path: str, file_bytes: int, unread: Sequence[Dropped], *, n_read: int) -> FileLoss | None:
    """Sum up the unreadable parts of a file whose other parts gave `n_read` records; None if all was readable.

    If a part does not state its number of records, estimate it from the mean size of the others.
    """
    parts = [(record, record.unread) for record in unread if record.unread is not None]
    if not parts:
        return None
    largest = max(parts, key=lambda part: part[1].n_bytes)[0]
    n_bytes = sum(part.n_bytes for _, part in parts)
    known = sum(part.n_records for _, part in parts if part.n_records is not None)
    guessed_bytes = sum(part.n_bytes for _, part in parts if part.n_records is None)
    is_open = any(part.n_records is None and not part.n_bytes for _, part in parts)  # for example, a file that was cut
    readable = file_bytes - n_bytes
    if guessed_bytes and n_read and readable > 0:
        records: int | None = known + round(guessed_bytes * n_read / readable)
    else:
        records = None if guessed_bytes or (is_open and not known) else known
    return FileLoss(path, file_bytes, n_bytes, records, largest.reason, largest.detail)


def reading_facts(facts: Mapping[str, Sequence[dict[str, Any]]]) -> Sequence[dict[str, Any]]:
    """Return the facts of the stage that read the input files, from those of all stages."""
    return facts.get("extract") or facts.get("conversations") or facts.get("labels", [])


def losses_in(facts: Iterable[Mapping[str, Any]]) -> list[FileLoss]:
    """Return the losses among the facts of all extraction tasks of a run.

    For a file of which nothing was read, estimate the records from the mean size in the others.
    """
    facts = list(facts)
    n_records = sum(about.get("records", 0) for about in facts)
    n_bytes = sum(about.get("read_bytes", 0) for about in facts)
    losses = [FileLoss(**about["unread"]) for about in facts if "unread" in about]
    if not n_records or not n_bytes:
        return losses
    return [
        replace(loss, records=round(loss.unread_bytes * n_records / n_bytes))
        if loss.records is None and loss.unread_bytes
        else loss
        for loss in losses
    ]


def at_path(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a task's facts with the present path of its input, which may have moved. A remote file has its URL."""
    named = {key: value for key, value in facts.items() if isinstance(value, dict) and "path" in value}
    return facts | {k: {**value, "path": str(path)} for k, value in named.items() if "://" not in value["path"]}


def sum_of_losses(losses: Sequence[FileLoss]) -> dict[str, int]:
    """Return files, bytes and estimated records that were not read, for corpus.json."""
    n_records = sum(loss.records or 0 for loss in losses)
    return {"files": len(losses), "bytes": sum(loss.unread_bytes for loss in losses), "records": n_records}

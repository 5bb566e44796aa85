"""Read the texts of Parquet files, row by row, in a child process with a memory limit."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.documents.records import Dropped, Origin, Unread, from_fields, usable_id
from data_prep.documents.shards import Document
from data_prep.execution.child_frames import END, FAILED, NO_COLUMN, OUT_OF_MEMORY, TEXT
from data_prep.execution.child_process import Child
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json

MAX_MEMORY_BYTES, MAX_BATCH_CPU_S = 448 << 20, 10.0
_SILENCE_S = 12 * MAX_BATCH_CPU_S
_MAX_CRASHES = 4  # in one file; each costs up to MAX_BATCH_CPU_S
Row = tuple[int, dict[str, Any], int]
_REASONS = {OUT_OF_MEMORY: "out_of_memory", FAILED: "damaged", NO_COLUMN: "malformed"}


def read_parquet(path: Path, text_field: str, id_field: str, *, max_record_bytes: int) -> Iterator[Document | Dropped]:
    """Yield every row as a document, or as the reason why it gives none; positions are row numbers.

    Rows of a group that cannot be read are one `Dropped` with their number in `unread`: the group is `damaged`,
    or does not fit the limits (`out_of_memory`, `timed_out`, `crashed`). A file without the column is `malformed`.
    """
    origin = Origin(path)
    for found in _rows(path, text_field, id_field, max_record_bytes=max_record_bytes):
        if isinstance(found, Dropped):
            yield found
            continue
        row, values, n_bytes = found
        document = from_fields(values, text_field=text_field, id_field=id_field)
        if document is None:
            name = "too_large" if n_bytes > max_record_bytes else "malformed"
            yield origin.drop(name, n_bytes, row, id=usable_id(values.get(id_field)))
        else:
            yield document


def read_parquet_rows(path: Path, *, max_record_bytes: int) -> Iterator[Row | Dropped]:
    """Yield every row as (its number, values of all columns, their bytes as JSON), or the reason why it has none.

    Errors as for `read_parquet`.
    """
    origin = Origin(path)
    for found in _rows(path, None, "", max_record_bytes=max_record_bytes):
        if isinstance(found, Dropped) or found[1]:
            yield found
        else:
            name = "too_large" if found[2] > max_record_bytes else "malformed"
            yield origin.drop(name, found[2], found[0])


def _rows(path: Path, text_field: str | None, id_field: str, *, max_record_bytes: int) -> Iterator[Row | Dropped]:
    """Yield (number of a row, its wanted values, bytes of its text), or the reason why rows are not read."""
    origin, row, n_crashes = Origin(path), 0, 0
    failed_row, reason = None, ""  # of the child process that ended early
    while True:
        child = _start(path, text_field, id_field, max_record_bytes=max_record_bytes, failed_row=failed_row)
        try:
            while (frame := child.receive(_SILENCE_S)) and frame[0] != END:
                number, about = decode_json(frame[1])
                if frame[0] != TEXT:
                    yield _gap(origin, path, row, number, reason=_REASONS.get(frame[0], reason), detail=about)
                    row += number or 0
                    continue
                yield row, about, number
                row += 1
        finally:
            ending = child.end()
        if frame is not None:
            return
        reason = "timed_out" if ending.stuck or ending.code == -signal.SIGPROF else "crashed"
        n_crashes += 1
        if n_crashes == _MAX_CRASHES or failed_row == row:
            yield origin.drop(reason, 0, row, detail="the rows from here on", unread=Unread(0))
            return
        failed_row = row


def _gap(origin: Origin, path: Path, row: int, n_rows: int | None, *, reason: str, detail: str) -> Dropped:
    """Describe rows that cannot be read, or a whole file whose number of rows is not known."""
    n_bytes = path.stat().st_size if n_rows is None else 0
    rows = "" if n_rows is None else f"{n_rows} rows from here on"
    about = ": ".join(part for part in (rows, detail) if part)
    return origin.drop(reason, n_bytes, row, detail=about, unread=Unread(n_bytes, n_rows))


def check_columns(path: Path, text_field: str, id_field: str) -> None:
    """Raise ConfigError if a Parquet file lacks the column of the texts. A file that cannot be read passes."""
    child = _start(path, text_field, id_field, max_record_bytes=1, failed_row=1 << 62)  # no row group is read
    try:
        frame = child.receive(_SILENCE_S)
    finally:
        child.end()
    if frame is not None and frame[0] == NO_COLUMN:
        raise ConfigError(f"{path}: {decode_json(frame[1])[1]}")


def _start(
    path: Path, text_field: str | None, id_field: str, *, max_record_bytes: int, failed_row: int | None
) -> Child:
    facts = {"path": str(path), "text_field": text_field, "id_field": id_field, "failed_row": failed_row}
    limits = {"max_record_bytes": max_record_bytes, "max_memory_bytes": MAX_MEMORY_BYTES, "max_cpu_s": MAX_BATCH_CPU_S}
    return Child("data_prep.readers.parquet_child", facts | limits)

"""The child process that reads one Parquet file for parquet_files.py, because a file of 1 kB can request gigabytes.

It sends one frame a row: the size of the text and the wanted columns as JSON; without a column of texts, the whole row.
If it cannot read a row group, it sends one frame with the number of its rows and the reason, and continues with the
next group.
"""

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from data_prep.execution.child_frames import (
    CRASHED,
    END,
    FAILED,
    MISTAKE,
    NO_COLUMN,
    OUT_OF_MEMORY,
    READY,
    TEXT,
    limit_memory,
    read_text,
    reply,
)
from gpt.errors import ConfigError, import_extra
from gpt.files.json_text import decode_json, without_nan

_BUFFER = 1 << 20  # bytes of a column that are read at a time
_MAX_OTHER = 4096  # characters of a value that is not the text
_ROWS = 64  # decoded at a time; one at a time if these do not fit in memory


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Read the file that the first message names, from the row group after the one of `failed_row` if that is given."""
    facts = decode_json(read_text(requests))
    try:
        arrow: Any = import_extra("pyarrow", extra="data")
        parquet: Any = import_extra("pyarrow.parquet", extra="data")
    except ConfigError as error:
        reply(replies, MISTAKE, str(error))
        return
    arrow.set_memory_pool(arrow.system_memory_pool())  # other pools reserve more address space than they use
    reply(replies, READY)
    limit_memory(facts["max_memory_bytes"])
    try:
        # Without `pre_buffer`, pyarrow reads the chunks of a group block by block. With it, it reads them whole.
        file = parquet.ParquetFile(facts["path"], buffer_size=_BUFFER, pre_buffer=False)
        columns = _columns(file, facts)
    except MemoryError:
        _fail(replies, FAILED, None, f"its description does not fit in {facts['max_memory_bytes']} bytes")
    except (arrow.ArrowException, OSError) as error:
        _fail(replies, FAILED, None, f"not a readable Parquet file: {str(error).splitlines()[0]}")
    except ConfigError as error:
        _fail(replies, NO_COLUMN, file.metadata.num_rows, str(error))
    else:
        _send_groups(file, columns, facts, replies)
    reply(replies, END)


def _send_groups(file: Any, columns: list[str], facts: dict[str, Any], replies: BinaryIO) -> None:
    """Send the rows group by group, and in place of rows that cannot be read their number."""
    first, failed_row = 0, facts["failed_row"]
    for group in range(file.num_row_groups):
        n_rows = file.metadata.row_group(group).num_rows
        if failed_row is None or failed_row < first:
            _send_group(file, group, columns, facts, replies)
        elif failed_row < first + n_rows:  # the process before this one ended in this group
            _fail(replies, CRASHED, first + n_rows - failed_row)
        first += n_rows


def _send_group(file: Any, group: int, columns: list[str], facts: dict[str, Any], replies: BinaryIO) -> None:
    arrow: Any = import_extra("pyarrow", extra="data")
    n_rows, n_sent = file.metadata.row_group(group).num_rows, 0
    for batch_rows in (_ROWS, 1):
        batches = file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=columns, use_threads=False)
        try:
            for row in _rows(batches, n_sent, facts["max_cpu_s"]):
                reply(replies, TEXT, _as_json(row, facts["text_field"], facts["max_record_bytes"]))
                n_sent += 1
            return
        except MemoryError:
            continue
        except (arrow.ArrowException, OSError) as error:
            _fail(replies, FAILED, n_rows - n_sent, str(error).splitlines()[0][:200])
            return
    _fail(replies, OUT_OF_MEMORY, n_rows - n_sent)


def _fail(replies: BinaryIO, kind: int, n_rows: int | None, detail: str = "") -> None:
    """Report rows that were not read, and the reason; None rows if their number is not known."""
    reply(replies, kind, json.dumps([n_rows, detail]))


def _columns(file: Any, facts: dict[str, Any]) -> list[str]:
    names = list(file.schema_arrow.names)
    if facts["text_field"] is None:
        return names
    if facts["text_field"] not in names:
        raise ConfigError(f"no column '{facts['text_field']}' (it has: {', '.join(names)}). Set input.text_field")
    return [name for name in dict.fromkeys((facts["text_field"], facts["id_field"], "url", "date")) if name in names]


def _as_json(row: dict[str, Any], text_field: str | None, max_bytes: int) -> str:
    """Encode [bytes of the text, columns that are text or a number]; a text over the limit is left out.

    Without `text_field`: [bytes of the row, all columns], and a row over the limit is left out. Values that JSON does
    not have, such as dates and pictures, are null.
    """
    if text_field is None:
        whole = json.dumps(without_nan(row), ensure_ascii=False, default=lambda _: None)
        n_bytes = len(whole.encode("utf-8", "replace"))
        return f"[{n_bytes}, {whole if n_bytes <= max_bytes else '{}'}]"
    text = row.pop(text_field)
    n_bytes = len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
    values = {key: value for key, value in row.items() if isinstance(value, int) or _is_short(value)}
    if isinstance(text, str) and n_bytes <= max_bytes:
        values[text_field] = text
    return json.dumps([n_bytes, values], ensure_ascii=False)


def _is_short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_OTHER


def _rows(batches: Iterator[Any], skip: int, max_cpu_s: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of the batches from number `skip` on."""
    while True:
        signal.setitimer(signal.ITIMER_PROF, max_cpu_s)  # ends the process
        batch = next(batches, None)
        if batch is None:
            break
        first = max(skip, 0)
        skip -= batch.num_rows
        if first < batch.num_rows:
            yield from _values(batch.slice(first))
    signal.setitimer(signal.ITIMER_PROF, 0)


def _values(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch; a row that is not UTF-8 has no values."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [dict.fromkeys(batch.schema.names)]
        return [row for i in range(batch.num_rows) for row in _values(batch.slice(i, 1))]


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)

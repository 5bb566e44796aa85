"""The child process that reads one Parquet file for parquet_files.py, because a file of 1 kB can request gigabytes.

It sends one frame a row, the size of the text and the wanted columns as JSON, and a last one with how the file ends.
"""

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from data_prep.execution.child_frames import (
    END,
    FAILED,
    MISTAKE,
    OUT_OF_MEMORY,
    READY,
    TEXT,
    limit_memory,
    read_text,
    reply,
)
from gpt.errors import ConfigError, import_extra
from gpt.files.json_text import decode_json

_BUFFER = 1 << 20  # bytes of a column that are read at a time
_MAX_OTHER = 4096  # characters of a value that is not the text
_ROWS = 64  # decoded at a time; one at a time if these do not fit in memory


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Read the file that the first message names."""
    facts = decode_json(read_text(requests))
    try:
        arrow: Any = import_extra("pyarrow", extra="data")
        parquet: Any = import_extra("pyarrow.parquet", extra="data")
        arrow.set_memory_pool(arrow.system_memory_pool())  # other pools reserve more address space than they use
        limit_memory(facts["max_memory_bytes"])
        file = parquet.ParquetFile(facts["path"], buffer_size=_BUFFER)
        columns = _columns(file, facts)
    except ConfigError as error:
        reply(replies, MISTAKE, str(error))
        return
    except MemoryError:
        reply(replies, MISTAKE, f"{facts['path']}: its description does not fit in {facts['max_memory_bytes']} bytes")
        return
    except (arrow.ArrowException, OSError) as error:
        text = str(error).splitlines()[0]
        reply(replies, MISTAKE, f"{facts['path']} is not a readable Parquet file: {text}")
        return
    reply(replies, READY)
    n_sent = 0
    for n_rows in (_ROWS, 1):
        try:
            for row in _rows(file, columns, n_rows, n_sent, facts["max_cpu_s"]):
                reply(replies, TEXT, _as_json(row, facts["text_field"], facts["max_record_bytes"]))
                n_sent += 1
        except MemoryError:
            continue
        except (arrow.ArrowException, OSError) as error:
            reply(replies, FAILED, str(error).splitlines()[0][:200])
            return
        reply(replies, END)
        return
    reply(replies, OUT_OF_MEMORY)


def _columns(file: Any, facts: dict[str, Any]) -> list[str]:
    names = file.schema_arrow.names
    if facts["text_field"] not in names:
        raise ConfigError(
            f"{facts['path']} has no column '{facts['text_field']}' (it has: {', '.join(names)}). Set input.text_field"
        )
    return [name for name in dict.fromkeys((facts["text_field"], facts["id_field"], "url", "date")) if name in names]


def _as_json(row: dict[str, Any], text_field: str, max_bytes: int) -> str:
    """Encode [bytes of the text, columns that are text or a number]; a text over the limit is left out."""
    text = row.pop(text_field)
    n_bytes = len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
    values = {key: value for key, value in row.items() if isinstance(value, int) or _is_short(value)}
    if isinstance(text, str) and n_bytes <= max_bytes:
        values[text_field] = text
    return json.dumps([n_bytes, values], ensure_ascii=False)


def _is_short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_OTHER


def _rows(file: Any, columns: list[str], n_rows: int, skip: int, max_cpu_s: float) -> Iterator[dict[str, Any]]:
    """Yield the rows from number `skip` on, decoded `n_rows` at a time."""
    batches = file.iter_batches(batch_size=n_rows, columns=columns, use_threads=False)
    while True:
        signal.setitimer(signal.ITIMER_PROF, max_cpu_s)  # ends the process
        batch = next(batches, None)
        if batch is None:
            break
        first = max(skip, 0)
        skip -= batch.num_rows
        if first < batch.num_rows:
            yield from batch.slice(first).to_pylist()
    signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)

"""Read the texts of Parquet files, row by row, in a child process with a memory limit."""

import signal
from collections.abc import Iterator
from pathlib import Path

from data_prep.documents.records import Dropped, Origin, from_fields, usable_id
from data_prep.documents.shards import Document
from data_prep.execution.child_frames import END, FAILED, OUT_OF_MEMORY, TEXT
from data_prep.execution.child_process import Child
from gpt.files.json_text import decode_json

MAX_MEMORY_BYTES, MAX_BATCH_CPU_S = 448 << 20, 10.0
_SILENCE_S = 12 * MAX_BATCH_CPU_S


def read_parquet(path: Path, text_field: str, id_field: str, *, max_record_bytes: int) -> Iterator[Document | Dropped]:
    """Yield every row as a document or as the reason why it is none; positions are row numbers.

    ConfigError: not a Parquet file, or the column is missing. A file that is `damaged` further on, or whose next rows
    do not fit the limits (`out_of_memory`, `timed_out`, `crashed`), gives the rows before that.
    """
    fields = {"text_field": text_field, "id_field": id_field}
    limits = {"max_record_bytes": max_record_bytes, "max_memory_bytes": MAX_MEMORY_BYTES, "max_cpu_s": MAX_BATCH_CPU_S}
    child = Child("data_prep.readers.parquet_child", {"path": str(path), **fields, **limits})
    origin, row = Origin(path), 0
    try:
        while (frame := child.receive(_SILENCE_S)) and frame[0] == TEXT:
            n_bytes, values = decode_json(frame[1])
            document = from_fields(values, **fields)
            if document is None:
                reason = "too_large" if n_bytes > max_record_bytes else "malformed"
                yield origin.drop(reason, n_bytes, row, id=usable_id(values.get(id_field)))
            else:
                yield document
            row += 1
    finally:
        ending = child.end()
    if frame is None:
        timed_out = ending.stuck or ending.code == -signal.SIGPROF
        yield origin.drop("timed_out" if timed_out else "crashed", 0, row, detail="the rows from here on")
    elif frame[0] != END:
        reason = {OUT_OF_MEMORY: "out_of_memory", FAILED: "damaged"}[frame[0]]
        yield origin.drop(reason, 0, row, detail=f"the rows from here on: {frame[1]}".rstrip(": "))

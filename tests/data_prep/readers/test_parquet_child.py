"""Run the child process that reads a Parquet file, and read the frames that it sends."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.execution.child_frames import (
    CRASHED,
    END,
    FAILED,
    NO_COLUMN,
    OUT_OF_MEMORY,
    READY,
    REPLY,
    SIZE,
    TEXT,
)

arrow = pytest.importorskip("pyarrow", reason="the extra 'data' is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

ENOUGH, LITTLE = 448 << 20, 128 << 20  # bytes of memory; pyarrow needs about 80 MiB for its threads


def frames(
    path: Path, *, max_record_bytes: int = 50, max_memory_bytes: int = ENOUGH, failed_row: int | None = None
) -> list[tuple[int, str]]:
    """Run the child on a file with a column `text`; return the kind and the text of each frame."""
    request: dict[str, Any] = {"path": str(path), "text_field": "text", "id_field": "id", "max_cpu_s": 60.0}
    request |= {"max_record_bytes": max_record_bytes, "max_memory_bytes": max_memory_bytes, "failed_row": failed_row}
    message = json.dumps(request).encode()
    command = [sys.executable, "-m", "data_prep.readers.parquet_child"]
    sent = subprocess.run(command, input=SIZE.pack(len(message)) + message, capture_output=True, check=True, timeout=60)
    found, at = [], 0
    while at < len(sent.stdout):
        kind, size = REPLY.unpack_from(sent.stdout, at)
        at += REPLY.size + size
        found.append((kind, sent.stdout[at - size : at].decode()))
    return found


def test_each_row_is_a_frame_with_the_size_of_its_text_and_the_short_columns(tmp_path: Path) -> None:
    """The frame leaves out a text over the limit, a list, an address of 5,000 characters, and an unknown column."""
    columns: dict[str, list[Any]] = {
        "id": ["a", "b", "c"],
        "text": ["zwölf", "y" * 99, None],
        "url": ["http://x/", "http://y/" + "z" * 5000, None],
        "date": [[1], [2], [3]],
        "other": [1, 2, 3],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    first, *rows, last = frames(tmp_path / "a.parquet")
    assert (first, last) == ((READY, ""), (END, ""))
    assert [kind for kind, _ in rows] == [TEXT] * 3
    assert [json.loads(text) for _, text in rows] == [
        [6, {"text": "zwölf", "id": "a", "url": "http://x/"}],
        [99, {"id": "b"}],
        [0, {"id": "c"}],
    ]


def test_rows_that_do_not_fit_in_memory_together_are_read_one_at_a_time(tmp_path: Path) -> None:
    """64 short rows fit; the next batch has one that never will. It costs the rest of its group, and no other row."""
    table = arrow.table({"text": [f"short {i}" for i in range(65)] + ["y" * 100_000_000, "lost", "last"]})
    path, options = tmp_path / "a.parquet", {"row_group_size": 67, "write_batch_size": 1, "data_page_size": 1}
    parquet.write_table(table, path, use_dictionary=False, write_statistics=False, **options)
    first, *rows, failure, last_row, last = frames(path, max_memory_bytes=LITTLE)
    assert (first, last) == ((READY, ""), (END, ""))
    assert [json.loads(text)[1] for _, text in rows] == [{"text": f"short {i}"} for i in range(65)]
    assert failure == (OUT_OF_MEMORY, json.dumps([2, ""]))
    assert json.loads(last_row[1])[1] == {"text": "last"}


def test_a_row_group_larger_than_the_memory_is_read_page_by_page(tmp_path: Path) -> None:
    """One group of 100 MB, as pandas and polars make them, with the memory for half of it."""
    rng, path = random.Random(0), tmp_path / "a.parquet"
    texts = [rng.randbytes(2000).hex() for _ in range(25_000)]
    parquet.write_table(arrow.table({"text": texts}), path, compression="none", use_dictionary=False)
    assert parquet.ParquetFile(path).metadata.num_row_groups == 1
    found = frames(path, max_record_bytes=1, max_memory_bytes=LITTLE)
    assert [kind for kind, _ in found] == [READY, *[TEXT] * len(texts), END]


def test_after_a_crash_the_next_process_continues_behind_the_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": [str(i) for i in range(10)]}), path, row_group_size=4)
    _, failure, *rows, last = frames(path, failed_row=5)
    assert failure == (CRASHED, json.dumps([3, ""]))
    assert [json.loads(text)[1]["text"] for _, text in rows] == ["8", "9"]
    assert last == (END, "")


def test_a_file_without_the_column_or_of_another_kind_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": ["one"], "n": [1]}), path)
    detail = "no column 'text' (it has: body, n). Set input.text_field"
    assert frames(path) == [(READY, ""), (NO_COLUMN, json.dumps([1, detail])), (END, "")]
    path.write_bytes(b"PAR1 nothing")
    _, (kind, text), _ = frames(path)
    n_rows, detail = json.loads(text)
    assert (kind, n_rows, detail.count("\n")) == (FAILED, None, 0)
    assert detail.startswith("not a readable Parquet file: ")

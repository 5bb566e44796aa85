"""Run the child process that reads a Parquet file, and read the frames that it sends."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.execution.child_frames import END, MISTAKE, OUT_OF_MEMORY, READY, REPLY, SIZE, TEXT

arrow = pytest.importorskip("pyarrow", reason="the extra 'data' is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

ENOUGH, LITTLE = 448 << 20, 128 << 20  # bytes of memory; pyarrow needs about 80 MiB for its threads


def frames(path: Path, *, max_record_bytes: int = 50, max_memory_bytes: int = ENOUGH) -> list[tuple[int, str]]:
    """Run the child on a file with a column `text`; return the kind and the text of each frame."""
    request: dict[str, Any] = {"path": str(path), "text_field": "text", "id_field": "id", "max_cpu_s": 60.0}
    request |= {"max_record_bytes": max_record_bytes, "max_memory_bytes": max_memory_bytes}
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
    """64 short rows fit; the next batch has one that never will. Every short row arrives once, then the file ends."""
    table = arrow.table({"text": [f"short {i}" for i in range(65)] + ["y" * 300_000_000]})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, row_group_size=1, use_dictionary=False, write_statistics=False)
    first, *rows, last = frames(path, max_memory_bytes=LITTLE)
    assert (first, last) == ((READY, ""), (OUT_OF_MEMORY, ""))
    assert [json.loads(text)[1] for _, text in rows] == [{"text": f"short {i}"} for i in range(65)]


def test_the_users_mistakes_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": ["one"], "n": [1]}), path)
    assert frames(path) == [(MISTAKE, f"{path} has no column 'text' (it has: body, n). Set input.text_field")]
    path.write_bytes(b"PAR1 nothing")
    ((kind, text),) = frames(path)
    assert (kind, text.count("\n")) == (MISTAKE, 0)
    assert text.startswith(f"{path} is not a readable Parquet file: ")

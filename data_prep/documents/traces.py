"""The record of what was dropped: one line a document or record, with the step and the reason; never holds a text.

A stage writes its trace beside its shard. The reading step's trace is the quarantine of bad records.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path

from data_prep.documents.shards import whole_text
from gpt.errors import import_extra


@dataclass(frozen=True)
class Drop:
    """One document that ended at a step. `detail` is what the reason leaves open: a language, a score, a position."""

    id: str
    step: str
    reason: str
    bytes: int
    detail: str = ""


class Trace:
    """Takes the drops of one task, in order; several steps of a task may share it."""

    def __init__(self, lines: BufferedWriter) -> None:
        self._lines = lines

    def add(self, drop: Drop) -> None:
        """Append one line."""
        line = json.dumps(asdict(drop), ensure_ascii=False, separators=(",", ":"))
        self._lines.write(whole_text(line).encode() + b"\n")


@contextmanager
def write_trace(path: Path) -> Iterator[Trace]:
    """A `.dropped.jsonl.zst` file; the same drops give the same bytes."""
    zstandard = import_extra("zstandard", extra="data")
    with open(path, "wb") as raw, zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as packed:
        lines = BufferedWriter(packed, 1 << 16)
        yield Trace(lines)
        lines.flush()


def read_trace(path: Path) -> Iterator[Drop]:
    """The drops of a file that `write_trace` made."""
    zstandard = import_extra("zstandard", extra="data")
    with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as packed:
        for line in BufferedReader(packed, 1 << 16):
            yield Drop(**json.loads(line))

"""Write and read traces: one line for each dropped document or record, with the step and the reason, without its text.

A stage writes a trace next to each shard. The trace of the reading step is the quarantine of bad records.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path

from data_prep.documents.shards import whole_text
from gpt.errors import import_extra
from gpt.files.json_text import decode_json


@dataclass(frozen=True)
class Drop:
    """One document that a step dropped. `detail` makes the reason precise: a language, a score, a position."""

    id: str
    step: str
    reason: str
    bytes: int
    detail: str = ""


class Trace:
    """Collects the drops of one task, in order; several steps of a task may share it."""

    def __init__(self, lines: BufferedWriter) -> None:
        self._lines = lines

    def add(self, drop: Drop) -> None:
        """Append one drop as a line."""
        line = json.dumps(asdict(drop), ensure_ascii=False, separators=(",", ":"))
        self._lines.write(whole_text(line).encode() + b"\n")


@contextmanager
def write_trace(path: Path) -> Iterator[Trace]:
    """Open a `.dropped.jsonl.zst` file to write drops to; the same drops give the same bytes."""
    zstandard = import_extra("zstandard", extra="data")
    with open(path, "wb") as raw, zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as packed:
        lines = BufferedWriter(packed, 1 << 16)
        yield Trace(lines)
        lines.flush()


def read_trace(path: Path) -> Iterator[Drop]:
    """Yield the drops of a file that `write_trace` made."""
    zstandard = import_extra("zstandard", extra="data")
    with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as packed:
        for line in BufferedReader(packed, 1 << 16):
            yield Drop(**decode_json(line))

"""Write and read traces: one line for each dropped document or record, with the step and the reason, without its text.

A stage writes a trace next to each shard. The trace of the reading step is the quarantine of bad records.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BufferedWriter
from pathlib import Path

from data_prep.documents.shards import DamagedShardError, read_packed, whole_text
from gpt.errors import import_extra


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
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with open(path, "wb") as raw, compressor.stream_writer(raw, closefd=False) as packed:
        lines = BufferedWriter(packed, 1 << 16)
        yield Trace(lines)
        lines.flush()


def read_trace(path: Path) -> Iterator[Drop]:
    """Yield the drops of a file that `write_trace` made. DamagedShardError: it is not as it was written."""
    for values in read_packed(path):
        try:
            drop = Drop(**values)
        except TypeError as error:
            raise DamagedShardError(path, error) from None
        yield drop

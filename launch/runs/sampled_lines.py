"""Read a few lines of a long file: evenly spaced ones, or those of a range of steps. The rest is not read."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular

TAIL_BYTES = 64 * 1024


def sampled_records(path: Path, most: int) -> Iterator[dict[str, Any]]:
    """Yield about `most` JSON objects of a file of lines, evenly spaced over its bytes, then those of its last 64 KiB.

    Lines that are not objects are left out. OSError and ConfigError as for `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        tail = max(0, size - TAIL_BYTES)
        end = 0
        for i in range(most if tail else 0):
            start = _line_after(file, i * tail // most)
            if start < end:
                continue
            line = file.readline()
            end = start + len(line)
            if (record := _object(line)) is not None:
                yield record
        file.seek(max(end, _line_after(file, tail)))
        for line in file:
            if (record := _object(line)) is not None:
                yield record


def some_records(path: Path, most: int) -> list[dict[str, Any]]:
    """As `sampled_records`; empty if the file cannot be read."""
    with suppress(OSError, ConfigError):
        return list(sampled_records(path, most))
    return []


def sampled_texts(directory: Path, most: int) -> list[dict[str, Any]]:
    """Texts that a run's model wrote during training: records of samples.jsonl with `step`, `prompt` and `text`."""
    types = {"step": int, "prompt": str, "text": str}
    records = some_records(directory / "samples.jsonl", most)
    return [record for record in records if all(isinstance(record.get(key), types[key]) for key in types)]


def records_between(path: Path, first: int, last: int, *, most_bytes: int) -> list[dict[str, Any]] | None:
    """The JSON objects with a step from `first` to `last`, of a file whose steps do not go back.

    None if their lines have more than `most_bytes` together. Reads these lines and a few more.
    """
    with open_regular(path) as file:
        start, stop = _offset_of(file, first), _offset_of(file, last + 1)
        if stop - start > most_bytes:
            return None
        file.seek(start)
        found = (_object(line) for line in file.read(stop - start).splitlines(keepends=True))
        return [record for record in found if record is not None]


def _offset_of(file: BinaryIO, step: int) -> int:
    """The offset of the first line with at least this step, or the size of the file."""
    low, high = 0, os.fstat(file.fileno()).st_size
    while low < high:
        middle = (low + high) // 2
        start, found = _line_after(file, middle), None
        while start < high and found is None:
            line = file.readline()
            record = _object(line)
            found = record.get("step") if record is not None else None
            if not isinstance(found, int):
                start, found = start + len(line), None
                if not line:
                    break
        if found is None or found >= step:
            high = middle
        else:
            low = start + len(line)
    return _line_after(file, low)


def _line_after(file: BinaryIO, offset: int) -> int:
    """Go to the first line that starts at or after an offset, and return where it starts."""
    if offset > 0:
        file.seek(offset - 1)
        file.readline()
    else:
        file.seek(0)
    return file.tell()


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a whole line."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = decode_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None

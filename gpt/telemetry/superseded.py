"""Move the lines of steps that will be taken again from metrics.jsonl to another file."""

import math
import os
from pathlib import Path

from gpt.files.atomic import append_to, open_replacement, sync_file
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular

SUPERSEDED = "metrics.superseded.jsonl"
TAIL_BYTES = 1 << 20  # a few thousand lines


def supersede_after(path: Path, *, step: int) -> int:
    """Move lines after `step`, and lines cut short by a crash, from a metrics file to metrics.superseded.jsonl.

    Returns how many of them are damaged: complete, but without a step. Only the end of the file is read, from some
    position before the first such line, since steps never decrease in it. A crash in between leaves the metrics file
    unchanged; the moved lines may then be in the other file twice.
    """
    if not path.exists() or (start := _first_to_move(path, step)) is None:
        return 0
    n_damaged, superseded = 0, path.with_name(SUPERSEDED)
    with open_replacement(path, durable=True) as kept, open_regular(path) as lines, append_to(superseded) as moved:
        while lines.tell() < start:
            kept.write(lines.read(min(TAIL_BYTES, start - lines.tell())))
        for line in lines:
            found = _step_of(line)
            n_damaged += math.isinf(found) and line.endswith(b"\n")
            target = kept if found <= step else moved
            target.write(line if line.endswith(b"\n") else line + b"\n")
        sync_file(moved)
    return n_damaged


def _first_to_move(path: Path, step: int) -> int | None:
    """Return the position of the first line to move, None without one. Reads a growing part of the end of the file."""
    reach = TAIL_BYTES
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        while True:
            start = max(0, size - reach)
            file.seek(start)
            position = start + (len(file.readline()) if start else 0)  # the rest of a line
            for line in file:
                if _step_of(line) > step:
                    break
                position += len(line)
            if start == 0 or position - start > reach // 2:
                return position if position < size else None
            reach *= 4


def _step_of(line: bytes) -> float:
    """Return the step of a line, or infinity if the line is incomplete or has no valid one."""
    try:
        step = decode_json(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf
    return step if isinstance(step, int) and 0 <= step < 2**62 else math.inf

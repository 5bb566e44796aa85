"""The faults and rescues of a run, a JSON object a line in RUN/events.jsonl; prints nothing and decides nothing."""

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from gpt.own_files import append_to

# Every kind that any rank may leave; launch/report_facts.py says what each means to an operator, and a test that none
# is missing there.
EventKind = Literal[
    "checkpoint_estimate",
    "checkpoint_failed",
    "checkpoint_saved",
    "checkpoint_skipped",
    "copies_differ",
    "data_damaged",
    "ended",
    "fast_checkpoint_failed",
    "hang",
    "restart",
    "resumed",
    "rewind",
    "rewind_refused",
    "setting_changed",
    "spike",
    "started_from",
    "step_skipped",
    "stopped",
    "straggler",
    "straggler_gone",
    "warning",
]


class TellEvent(Protocol):
    """Has what befell a run told and kept."""

    def __call__(self, kind: EventKind, text: str, **fields: Any) -> None: ...


def append_event(path: Path, kind: EventKind, *, step: int | None, text: str, fields: dict[str, Any]) -> None:
    """Add one line: time (UTC, for people: nothing is decided by it), kind, step, text, and what else is known of it.

    Opened for each line, since events are rare and must outlive a kill. OSError: the disk is full.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"time": time, "kind": kind, "step": step, "text": text, **fields}
    line = json.dumps(record, allow_nan=True).encode() + b"\n"
    with append_to(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.write(line) != len(line):
            os.ftruncate(file.fileno(), size)  # a cut line would spoil the next one, too
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

"""The faults and rescues of a run, a JSON object a line in RUN/events.jsonl; prints nothing and decides nothing."""

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from gpt.files.line_file import LineFile

# Every kind that any rank may leave; launch/reports/facts.py says what each means to an operator, and a test that none
# is missing there.
EventKind = Literal[
    "checkpoint_estimate",
    "checkpoint_failed",
    "checkpoint_saved",
    "checkpoint_skipped",
    "data_damaged",
    "ended",
    "fast_checkpoint_failed",
    "hang",
    "replica_mismatch",
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
    """Add one event from outside of the run's own process. OSError: the disk is full."""
    file = LineFile(path)
    file.add(event_line(kind, step=step, text=text, fields=fields))
    is_cut = file.is_waiting
    file.close()
    if is_cut:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def event_line(kind: EventKind, *, step: int | None, text: str, fields: dict[str, Any]) -> bytes:
    """Time (UTC, for people: nothing is decided by it), kind, step, text, and what else is known of it."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"time": time, "kind": kind, "step": step, "text": text, **fields}
    return json.dumps(record, allow_nan=True).encode() + b"\n"

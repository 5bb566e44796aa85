"""Write the events of a run, such as faults and restarts: one JSON object per line of RUN/events.jsonl."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from gpt.files.line_file import LineFile

# Every kind of event. launch/reports/facts.py says what each means to an operator; a test checks that none is missing.
EventKind = Literal[
    "best",
    "calibrated",
    "checkpoint_estimate",
    "checkpoint_failed",
    "checkpoint_saved",
    "checkpoint_skipped",
    "data_damaged",
    "ended",
    "fast_checkpoint_failed",
    "hang",
    "heads_fitted",
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


# Events that a terminal shows in a colour of their own: those that need a person, and those that cost something.
ERRORS: tuple[EventKind, ...] = ("checkpoint_failed", "hang", "replica_mismatch")
WARNINGS: tuple[EventKind, ...] = (
    *("checkpoint_skipped", "data_damaged", "fast_checkpoint_failed", "restart", "rewind", "rewind_refused", "spike"),
    *("step_skipped", "straggler", "warning"),
)


class RecordEvent(Protocol):
    """A function that prints an event of the run and writes it to events.jsonl."""

    def __call__(self, kind: EventKind, text: str, **fields: Any) -> None: ...


def append_event(path: Path, kind: EventKind, *, step: int | None, text: str, fields: dict[str, Any]) -> None:
    """Append one event from a process other than the run's main rank. OSError: the disk is full, or fails."""
    file = LineFile(path)
    file.add(event_line(kind, step=step, text=text, fields=fields))
    error = file.error if file.is_waiting else None
    file.close()
    if error is not None:
        raise error


def event_line(kind: EventKind, *, step: int | None, text: str, fields: dict[str, Any]) -> bytes:
    """Encode an event: time (UTC, only for readers), kind, step, text and further fields."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"time": time, "kind": kind, "step": step, "text": text, **fields}
    return json.dumps(record, allow_nan=True).encode() + b"\n"

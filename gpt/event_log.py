"""The faults and rescues of a run, a JSON object a line in RUN/events.jsonl; prints nothing and decides nothing."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def append_event(path: Path, kind: str, *, step: int | None, text: str, fields: dict[str, Any]) -> None:
    """Add one line: time (UTC, for people: nothing is decided by it), kind, step, text, and what else is known of it.

    Opened for each line, since events are rare and must outlive a kill. OSError: the disk is full.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"time": time, "kind": kind, "step": step, "text": text, **fields}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=True) + "\n")

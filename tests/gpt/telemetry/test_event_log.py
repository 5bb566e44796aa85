"""Events as lines of JSON. tests/gpt/files/test_line_file.py has them on a full disk."""

import json
from datetime import datetime

from gpt.telemetry.event_log import append_event, event_line


def test_an_event_is_a_line_with_time_kind_step_text_and_fields():
    line = event_line("spike", step=7, text="up", fields={"loss": float("nan")})
    assert line.endswith(b"}\n")
    event = json.loads(line)
    assert datetime.fromisoformat(event.pop("time")).utcoffset().total_seconds() == 0
    assert event.pop("loss") != event.get("loss"), "not a number survives"
    assert event == {"kind": "spike", "step": 7, "text": "up"}


def test_events_are_appended(tmp_path):
    for step in (1, None):
        append_event(tmp_path / "events.jsonl", "hang", step=step, text="x", fields={})
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, None]

"""The tables of a run's page from given facts: events, checkpoints and processes."""

import re

from gpt.telemetry.goodput import ProcessTime
from launch.reports.facts import time_text
from launch.reports.tables import MAX_ROWS, checkpoints_part, events_part, flat, processes_part
from launch.runs.history import Event, RunHistory, StoredCheckpoint


def history(tmp_path, *, events=(), checkpoints=()):
    return RunHistory(
        directory=tmp_path,
        metrics={},
        superseded=[],
        events=list(events),
        account=None,
        checkpoints=list(checkpoints),
        config={},
        summary={},
    )


def event(at, kind, step=None, text="", **fields):
    return Event(float(at), kind, step, text, fields)


def rows(part):
    """The texts of each row's cells, without those of the head."""
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", part)]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in cells] for cells in found if cells]


def test_events_are_listed_newest_first_with_their_counts(tmp_path):
    part = events_part(
        history(
            tmp_path,
            events=[
                event(10, "checkpoint_saved", 5),
                event(11, "checkpoint_estimate", 5),
                event(20, "step_skipped", 1234, "<b>loss</b> nan"),
                event(30, "step_skipped", 1235),
                event(40, "hang", 1240, "rank 1", finding="died", reports="runs/x/hangs/1"),
                event(50, "resumed"),
            ],
        )
    )
    assert rows(part) == [
        [time_text(50), "", "resumed", ""],
        [time_text(40), "1,240", "rank died", "rank 1; stacks in runs/x/hangs/1"],
        [time_text(30), "1,235", "step skipped", ""],
        [time_text(20), "1,234", "step skipped", "&lt;b&gt;loss&lt;/b&gt; nan"],
    ], "successful saves are in the table of checkpoints"
    assert "<p class=note>2 step skipped, 1 rank died, 1 resumed</p>" in part
    assert part.count("<i class=fault></i>") == 3
    assert "<i class=restart></i>resumed" in part


def test_a_long_table_shows_its_newest_rows_and_says_so(tmp_path):
    part = events_part(history(tmp_path, events=[event(i, "spike", i) for i in range(1000, 1000 + MAX_ROWS + 50)]))
    shown = rows(part)
    assert [shown[0][1], shown[-1][1], len(shown)] == ["1,249", "1,050", MAX_ROWS]
    assert "Newest first. The newest 200 of 250." in part


def test_saves_are_on_disk_deleted_or_failed(tmp_path):
    part = checkpoints_part(
        history(
            tmp_path,
            events=[
                event(10, "checkpoint_saved", 100, bytes=2048, write_s=1.5, stall_s=0.25),
                event(20, "checkpoint_failed", 200, "no <room>"),
                event(30, "checkpoint_saved", 305, checkpoint_step=300, bytes=float("inf"), write_s="long"),
            ],
            checkpoints=[
                StoredCheckpoint(300, "step-000000300", 3 << 20, 29.0),
                StoredCheckpoint(400, "step-000000400", 4 << 20, 40.0),
            ],
        )
    )
    assert rows(part) == [
        [time_text(40), "400", "4.0 MiB", "", "on disk"],
        [time_text(30), "300", "3.0 MiB", "", "on disk"],
        [time_text(20), "200", "", "", "failed: no &lt;room&gt;"],
        [time_text(10), "100", "2.0 KiB", "1.50 s, 0.25 s training stopped", "deleted"],
    ], "a checkpoint without an event, and a background save that ended five steps later"
    assert "<p class=note>3 saved, 1 failed, 2 on disk</p>" in part


def test_of_two_saves_of_a_repeated_step_the_newer_is_on_disk(tmp_path):
    saves = [event(10, "checkpoint_saved", 100), event(20, "checkpoint_saved", 100)]
    part = checkpoints_part(
        history(tmp_path, events=saves, checkpoints=[StoredCheckpoint(100, "step-000000100", 12, 20.0)])
    )
    assert [row[-1] for row in rows(part)] == ["on disk", "deleted"]


def test_a_run_without_events_or_checkpoints_has_neither_table(tmp_path):
    assert events_part(history(tmp_path)) == ""
    assert events_part(history(tmp_path, events=[event(1, "checkpoint_saved", 1)])) == ""
    assert checkpoints_part(history(tmp_path, events=[event(1, "spike", 1)])) == ""


def process(name, *, from_step, step, down_s, elapsed_s, first_step_s):
    seconds = {"start_up/joining": 1.0, "start_up/loading": 0.5, "training": elapsed_s - 1.5}
    return ProcessTime(
        process=name,
        host=f"<{name}>",
        restart_count=0,
        world_size=1024,
        from_step=from_step,
        step=step,
        started_time=100.0,
        down_s=down_s,
        elapsed_s=elapsed_s,
        seconds=seconds,
        first_step_s=first_step_s,
    )


def test_processes_have_their_steps_and_times():
    part = processes_part(
        [
            process("a", from_step=0, step=1500, down_s=0.0, elapsed_s=30.0, first_step_s=2.0),
            process("b", from_step=None, step=0, down_s=10.0, elapsed_s=20.0, first_step_s=None),
            process("c", from_step=1000, step=2000, down_s=20.0, elapsed_s=20.0, first_step_s=4.0),
        ]
    )
    at = time_text(100.0)
    assert rows(part) == [
        ["3", at, "&lt;c&gt;", "1,024", "1,000 to 2,000", "20.00 s", "1.50 s", "4.00 s", "20.00 s"],
        ["2", at, "&lt;b&gt;", "1,024", "no step", "10.00 s", "1.50 s", "", "20.00 s"],
        ["1", at, "&lt;a&gt;", "1,024", "0 to 1,500", "", "1.50 s", "2.00 s", "30.00 s"],
    ]
    assert (
        "Medians from start to first step: joining 1.00 s, loading 0.50 s, first step 3.00 s; together 4.50 s." in part
    )


def test_the_strip_shows_processes_along_the_wall_time():
    """30 s, a gap of 10 s, 20 s, a gap of 20 s, 20 s."""
    two = [
        process("a", from_step=0, step=10, down_s=0.0, elapsed_s=30.0, first_step_s=2.0),
        process("b", from_step=None, step=0, down_s=10.0, elapsed_s=20.0, first_step_s=None),
        process("c", from_step=10, step=20, down_s=20.0, elapsed_s=20.0, first_step_s=2.0),
    ]
    part = processes_part(two)
    blocks = re.findall(r"<div class=(s\d) style=\"left:([\d.]+)%;width:([\d.]+)%\" title=\"([^\"]*)\"", part)
    assert [(colour, float(left), float(width)) for colour, left, width, _ in blocks] == [
        ("s0", 0, 30),
        ("s5", 40, 20),
        ("s0", 80, 20),
    ]
    assert blocks[1][3].startswith("process 2: steps ? to 0, ")
    assert "class=strip" not in processes_part(two[:1]), "a single process fills the time"


def test_no_process_is_an_empty_table():
    assert rows(processes_part([])) == []


def test_settings_are_named_with_dots():
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == [("a.b", "1"), ("a.c.d", ""), ("e", "[1]")]

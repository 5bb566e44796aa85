"""Show progress: documents a second, the time left, a slow task; lines without a terminal, a bar on one."""

import io
import re
import time

import pytest
from rich.console import Console

from data_prep.documents.counts import Counts
from data_prep.execution.progress import ProgressBars, StageProgress, span
from data_prep.execution.workers import RunningJob


def follow(**changes):
    named = {"n_tasks": 10, "n_done": 4, "n_bytes": 1000, "longest": lambda: None, **changes}
    return StageProgress("extract", **named)


def test_the_time_left_is_estimated_from_bytes_or_else_from_tasks(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    by_bytes, by_tasks = follow(), follow(n_bytes=0)
    assert by_bytes.left_s() is None
    assert by_bytes.line() == "extract: 4 of 10 tasks"
    now[0] = 110.0
    for each, n_bytes in ((by_bytes, 100), (by_tasks, 0)):
        each.advance([Counts("read", 50, 50), Counts("extract", 50, 50)], n_bytes)
    assert by_bytes.left_s() == pytest.approx(90.0)  # a tenth of the bytes in 10 s
    assert by_tasks.left_s() == pytest.approx(50.0)  # one of six tasks in 10 s
    assert by_tasks.words(time_first=True) == ["50 s left", "50 documents", "5 documents/s"], (
        "a terminal cuts off the end"
    )
    assert by_tasks.line() == "extract: 5 of 10 tasks, 50 documents, 5 documents/s, 50 s left"
    by_bytes.advance([], 400)
    assert by_bytes.left_s() == pytest.approx(10.0)
    assert by_bytes.summary() == "extract: 10 tasks, 4 done before, 50 documents, 5 documents/s, 10.0 s"


def test_a_slow_task_is_named_and_a_wait_for_other_shares_is_shown():
    busy = RunningJob("stage 'extract' of big.warc.gz", 4000.0, "pid 77")
    each = follow(longest=lambda: busy)
    assert each.line() == "extract: 4 of 10 tasks, longest: stage 'extract' of big.warc.gz, for 1 h 7 min (pid 77)"
    assert "longest" not in follow(longest=lambda: RunningJob("short", 2.0, "pid 1")).line()
    each = follow()
    each.advance([], 10)
    each.advance_others(2, "waiting for 3 of share 2/4")
    assert each.line() == "extract: 7 of 10 tasks, waiting for 3 of share 2/4"
    assert each.summary().startswith("extract: 10 tasks, 4 done before, 2 by other shares, ")


def test_lines_are_printed_during_a_stage_and_a_summary_at_its_end():
    text = io.StringIO()
    progress = ProgressBars(Console(file=text, width=120), every_s=0.05)
    with progress.stage("extract", n_tasks=2) as stage:
        stage.advance([Counts("read", 7, 7)], 0)
        time.sleep(0.3)
        stage.advance([Counts("read", 3, 3)], 0)
    lines = text.getvalue().splitlines()
    assert len(lines) >= 3
    assert all(re.match(r"extract: [12] of 2 tasks, \d+ documents, [\d,]+ documents/s", line) for line in lines[:-1])
    assert re.fullmatch(r"extract: 2 tasks, 10 documents, [\d,]+ documents/s, \d+\.\d s", lines[-1])


def on_terminal(width, *documents):
    """What a terminal of this width gets from a stage whose tasks read so many documents."""
    text = io.StringIO()
    progress = ProgressBars(Console(file=text, width=width, force_terminal=True))
    with progress.stage("extract", n_tasks=len(documents)) as stage:
        for n in documents:
            stage.advance([Counts("read", n, n)], 0)
    return text.getvalue()


def test_a_terminal_gets_a_bar():
    shown = on_terminal(150, 7, 3)
    assert "2/2" in shown
    assert "10 documents" in shown


def test_a_narrow_terminal_shows_the_words_that_fit():
    last = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_terminal(60, 3_435, 3_435)).strip())[-1]
    assert re.fullmatch(r"extract +━{8} 2/2 0:00:0\d 6,870 documents", last.strip())


def test_lengths_of_time_have_at_most_two_units():
    words = [span(seconds) for seconds in (0, 0.2, 8, 89, 91, 3599, 7500, 200_000, 400_000)]
    assert words == ["0 s", "1 s", "8 s", "89 s", "2 min", "1 h 0 min", "2 h 5 min", "2 d 8 h", "4 d 15 h"]

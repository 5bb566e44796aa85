"""Terminal helpers: printable text and the number of workers."""

import io
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress

import pytest
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from launch.processes import terminal
from launch.processes.terminal import SafeConsole, printable, tensor_progress, work_progress, worker_count


def test_printable_text_is_one_line_without_control_characters():
    assert printable("a\tb\n c") == "a b c"
    assert printable("\x1b[2Jüber\x07") == r"\x1b[2Jüber\x07"


def test_tables_and_lines_of_a_console_steer_no_terminal():
    output = io.StringIO()
    console = SafeConsole(file=output, force_terminal=True, width=80)
    table = Table("name", title="\x1b]0;title\x07")
    table.add_row("\x1b[2Jüber")
    for thing in (table, "a\x9b1m\u202eb", Text("\x1b[5mc")):
        console.print(thing, markup=False)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())  # rich's own colours
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", plain), plain
    assert r"\x1b[2J" in plain
    assert r"a\x9b1m\u202eb" in plain


def test_workers_default_to_the_cores_of_this_process():
    assert worker_count(None) == len(os.sched_getaffinity(0))
    assert worker_count(3) == 3
    with pytest.raises(ConfigError, match="--workers 0 is invalid"):
        worker_count(0)


def test_short_work_prints_nothing_into_a_pipe(capsys):
    with tensor_progress("tensors", total=2) as advance:
        advance("one")
        advance("two")
    assert capsys.readouterr() == ("", "")


def test_long_work_prints_a_line_now_and_then_into_a_pipe(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with work_progress() as progress, work_progress(shows=False) as hidden:
        for part in (progress, hidden):
            clock[0] = 0.0
            part.start("scoring\x1b[2J", total=100)
            for second in (9, 10, 20, 39, 40, 50, 100):
                clock[0] = float(second)
                part.update(second)
        clock[0] = 0.0
        progress.start("waiting")
        clock[0] = 3700.0
        progress.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        r"scoring\x1b[2J: 10s, 10% done, about 1m 30s left",
        r"scoring\x1b[2J: 40s, 40% done, about 1m 00s left",
        r"scoring\x1b[2J: 1m 40s, 100% done, about 0s left",
        "waiting: 1h 01m",
    ]


PROGRAM = """
from launch.processes import terminal
from launch.processes.terminal import SafeConsole, printable, tensor_progress, work_progress, worker_count
print("result")
with tensor_progress("writing [tensors]", total=4) as advance:
    for name in "abcd":
        advance(name)
"""


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_shows_a_bar_that_vanishes(term):
    """On standard error, while standard output is a pipe."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": "100", "PYTHONPATH": os.getcwd()}
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=follower, check=True, timeout=100)
    os.close(follower)
    assert done.stdout == b"result\n"
    with suppress(OSError):  # the end of a terminal's output
        os.set_blocking(leader, False)
        shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    if term == "dumb":
        assert "shown" not in locals()
        return
    assert "reading back and comparing" in shown
    assert re.search(r"writing \[tensors\].*100%", shown)
    assert shown.endswith("\x1b[2K"), "the bar is erased"


NARROW = """
from launch.processes.terminal import work_progress
with work_progress() as progress:
    progress.start("measuring 5 kinds of ranks")
    progress.update(0)
    progress._bars.refresh()
    progress.update(1, total=4)
    progress._bars.refresh()
    clock = progress._bars.tasks[0].get_time
    progress._bars.tasks[0].get_time = lambda: clock() + 60
    progress.update(2)
    progress._bars.refresh()
"""


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_bar_leaves_room_for_its_title_and_names_no_unknown_time(columns):
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", NARROW], env=environment, stderr=follower, check=True, timeout=100)
    os.close(follower)
    written = b""
    with suppress(OSError):  # EIO: nothing is left, and nobody can write more
        while part := os.read(leader, 1 << 16):
            written += part
    os.close(leader)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    drawn = [line.rstrip() for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert max(map(len, drawn)) <= columns
    assert all(line.startswith("measuring 5 kinds of") for line in drawn), drawn
    assert "left" not in drawn[0], "no total, no time"
    assert re.search(r"50%.* \d:\d\d:\d\d left$", drawn[-1]), drawn[-1]

"""Terminal helpers: printable text and the number of workers."""

import io
import os
import re

import pytest
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from launch.processes.terminal import SafeConsole, printable, progress_bar, worker_count


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


def test_a_progress_bar_prints_nothing_into_a_pipe(capsys):
    with progress_bar("tensors", total=2) as advance:
        advance("one")
        advance("two")
    assert capsys.readouterr() == ("", "")

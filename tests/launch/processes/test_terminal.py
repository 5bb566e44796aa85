"""Terminal helpers: printable text and the number of workers."""

import os

import pytest

from gpt.errors import ConfigError
from launch.processes.terminal import printable, progress_bar, worker_count


def test_printable_text_is_one_line_without_control_characters():
    assert printable("a\tb\n c") == "a b c"
    assert printable("\x1b[2Jüber\x07") == r"\x1b[2Jüber\x07"


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

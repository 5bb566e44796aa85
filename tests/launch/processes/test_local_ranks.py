"""Fresh local ranks with real processes: a failing rank ends the others, and the error names it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from launch.processes.local_ranks import MAX_SOCKET_NAME, SOCKET_NAME, fork_server

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
RUN = """
import sys
from pathlib import Path
from gpt.errors import ConfigError
from launch.processes.local_ranks import RankFailed, fork_server, run_ranks
import local_rank_functions
if __name__ == "__main__":
    context = fork_server(["torch"])
    for name in sys.argv[2:]:
        function, folder = getattr(local_rank_functions, name), Path(sys.argv[1], name)
        try:
            run_ranks(context, function, [str(folder)], nproc=3, logs=folder)
            print(f"{name}: done")
        except (ConfigError, RankFailed) as error:
            print(f"{name}: {type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def longest_folder():
    """A temporary folder with the longest name that still leaves room for the names of sockets."""
    name = f"/tmp/triaxial-{os.getpid()}-".ljust(MAX_SOCKET_NAME - len(SOCKET_NAME), "x")
    Path(name).mkdir()
    yield name
    shutil.rmtree(name)


@pytest.fixture(scope="module")
def said(tmp_path_factory, longest_folder):
    """Run all behaviours in one process, one after the other; returns the folder and the finished process."""
    folder = tmp_path_factory.mktemp("ranks")
    names = (
        "meets",
        "killed_before_it_joins",
        "killed_with_its_peers_waiting",
        "meets_again",
        "raises",
        "crashes",
        "crashes_outside_python",
        "mistaken",
        "forged",
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1", "TMPDIR": longest_folder}
    (folder / "program.py").write_text(RUN)
    done = subprocess.run(
        [sys.executable, "program.py", str(folder), *names],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def told(said, name):
    lines = said[1].stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{name}: "))
    rest = [i for i, line in enumerate(lines) if i > start and line.partition(": ")[0].isidentifier()]
    return "\n".join(lines[start : rest[0] if rest else None])


def test_ranks_join_and_only_rank_0_has_the_terminal(said):
    folder, done = said
    for name in ("meets", "meets_again"):
        assert told(said, name) == f"{name}: done"
        assert (folder / name / "rank2.log").read_text() == "rank 2 of a group of 3\n"
    assert done.stdout.count("rank 0 of a group of 3") == 2
    assert "rank 1 of a group" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["killed_before_it_joins", "killed_with_its_peers_waiting"])
def test_a_killed_rank_is_named_and_the_others_do_not_wait_for_it(said, name):
    assert told(said, name).startswith(f"{name}: RankFailed: rank 1 of 3 failed first (killed by SIGKILL")


def test_a_ranks_exception_is_shown(said):
    text = told(said, "raises")
    assert text.startswith("raises: RankFailed: rank 2 of 3 failed first (exit status 1)")
    assert text.endswith("[rank 2] ValueError: the fourth tensor is bad")


def test_the_thread_that_crashed_is_shown_first(said):
    first = ["[rank 1] Fatal Python error: Aborted", "[rank 1] Current thread 0x"]
    heading, *lines = told(said, "crashes").splitlines()
    assert heading == "crashes: RankFailed: rank 1 of 3 failed first (killed by SIGABRT)"
    assert [line[: len(start)] for line, start in zip(lines, first, strict=False)] == first
    assert lines[2].endswith(" in crashes")
    assert sum("Current thread" in line for line in lines) == 1
    assert any(line.startswith("[rank 1] Thread 0x") for line in lines)


def test_a_crash_in_a_thread_without_python_is_named(said):
    heading, first, *lines = told(said, "crashes_outside_python").splitlines()
    assert heading == "crashes_outside_python: RankFailed: rank 1 of 3 failed first (killed by SIGABRT)"
    assert first == "[rank 1] Fatal Python error: Aborted (in a thread that runs no Python code)"
    assert "Current thread" not in "".join(lines)


def test_a_users_mistake_is_raised_as_config_error(said):
    assert told(said, "mistaken") == "mistaken: ConfigError: data.seq_len = 0 must be at least 1"


def test_a_forged_message_is_one_line(said):
    assert told(said, "forged") == "forged: ConfigError: a message from the network has no valid seal of this job"


def test_a_temporary_folder_with_too_long_a_name_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/".ljust(MAX_SOCKET_NAME - len(SOCKET_NAME) + 1, "x"))
    with pytest.raises(
        ConfigError, match=r"^TMPDIR = /tmp/x+ is invalid: the name is too long .* has at most \d\d characters$"
    ):
        fork_server(["torch"])

"""What every process of ours does at its start: keep freed memory, and exit if a restart would repeat a mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.processes.error_reports import last_word, leave_word
from launch.processes.failures import SAVED_AFTER_SIGNAL
from launch.processes.rank_process import mark_saved

ROOT = Path(__file__).resolve().parents[3]


def test_kept_memory_costs_no_page_faults():
    count = """
import resource, sys, torch
from launch.processes.rank_process import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    for _ in range(10):
        torch.empty(10_000_000).fill_(1.0)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["PYTHONPATH"] = str(ROOT)

    def faults(word: str, **variables: str) -> int:
        command, env = [sys.executable, "-c", count, word], environment | variables
        return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    kept = faults("keep")
    assert 5 * kept < faults("plain")
    assert 5 * kept < faults("keep", MALLOC_MMAP_MAX_="65536"), "the user's choice"


def test_imports_pause_the_collector_in_a_command_and_not_in_a_program_that_calls_main():
    count = """
import gc
from launch.main import main
from launch.processes.rank_process import fast_imports
main(["config", "demo"])
print(gc.get_freeze_count())
try:
    with fast_imports():
        assert not gc.isenabled()
        raise ImportError
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count() > 10_000)
"""
    command, environment = [sys.executable, "-c", count], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-2:] == ["0", "True True"]


def test_a_signal_while_python_shuts_down_changes_no_exit_status():
    code = """
import atexit, os, signal, sys
from launch.main import main
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
    atexit.register(os.kill, os.getpid(), number)
sys.argv = ["triaxial", "docs"]
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_signal_at_the_end_of_the_first_step_lets_the_rank_go_on_to_save():
    """Its peers may have done the step already: if it left now, they would lose it in the next step."""
    program = """
import os, signal, time
from launch.processes import rank_process
rank_process.FIRST_STEP_S = 30.0
with rank_process.stop_signals() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    stop.step_done()
    while not stop():
        time.sleep(0.01)
print("saves now")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "saves now\n"), done.stderr


@pytest.mark.parametrize(("status", "exits"), [(2, True), (75, True), (1, False)])
def test_a_restarted_rank_exits_at_once_if_the_previous_start_ended_for_good(tmp_path, status, exits):
    """torchrun restarts after every failure, also after a mistake or a save that a signal asked for."""
    before, now = (tmp_path / f"attempt_{n}" for n in (0, 1))
    for folder in (before / "1", now / "0"):
        folder.mkdir(parents=True)
    recorded = {"message": {"message": "a mistake", "extraInfo": {"exit_status": status}}}
    (before / "1" / "error.json").write_text(json.dumps(recorded))
    program = "from launch.processes.rank_process import enter_process; enter_process(); print('went on')"
    settings = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1", "PYTHONPATH": str(ROOT)}
    settings["TORCHELASTIC_ERROR_FILE"] = str(now / "0" / "error.json")
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == ((status, "") if exits else (0, "went on\n")), done.stderr
    assert (now / "0" / "error.json").exists() == exits, "the next restart looks there"


def test_only_rank_0_of_a_node_writes_the_file_that_marks_a_save(tmp_path, monkeypatch):
    saved = tmp_path / "logs" / "saved"
    monkeypatch.setenv("TRIAXIAL_SAVED_FILE", str(saved))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert mark_saved() == SAVED_AFTER_SIGNAL
    assert not saved.exists()
    monkeypatch.delenv("LOCAL_RANK")
    leave_word("started", run_directory=tmp_path / "run")
    assert saved.read_text().splitlines() == ["started", str(tmp_path / "run")]
    assert mark_saved() == SAVED_AFTER_SIGNAL
    leave_word("stopped by a signal before the first step")  # on another node, which comes later
    assert saved.read_text().splitlines() == ["saved after a signal", str(tmp_path / "run")]
    leave_word("mistake")
    assert last_word() == "mistake"


def test_a_process_raises_its_limit_of_open_files_and_one_that_cannot_says_so():
    program = """
import resource
from gpt.errors import ConfigError
from launch.processes.rank_process import check_open_files, enter_process
enter_process()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
assert soft == hard, (soft, hard)
try:
    check_open_files(2)
except ConfigError as error:
    print(error)
"""

    def said(limits: str) -> str:
        command = ["bash", "-c", f'{limits}; exec "$0" -c "$1"', sys.executable, program]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert said("ulimit -Hn 200; ulimit -Sn 64") == ""
    assert said("ulimit -n 64").startswith("ulimit -Hn = 64 is invalid: a rank opens at least 72 files")

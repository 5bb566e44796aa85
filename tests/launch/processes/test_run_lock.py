"""One job a run directory: real processes lock the same one, are killed or stopped, on this machine or on another."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from launch.main import main
from launch.processes.run_lock import RECORD, Owner, lock

HERE = Path(__file__).resolve().parents[1]
LONG_S = "60"  # between heartbeats, or until silence counts: no test gets that far


@pytest.fixture
def holder(tmp_path):
    """Start a process that locks `tmp_path`/run; returns it and its first line: "held" or the refusal."""
    started = []

    def start(job, *, beat_s=LONG_S, silent_s=LONG_S, machine=(), trace=()):
        words = [tmp_path / "run", job, beat_s, silent_s, *machine]
        process = subprocess.Popen(
            [*trace, sys.executable, HERE / "holding.py", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_job_is_refused_in_one_line_and_takes_over_after_the_first_is_killed(
    tiny_corpus, holder, tmp_path, capsys
):
    run = tmp_path / "run"
    first, said = holder("4711")
    assert said == "held"
    before = contents(run)
    words = ["train", str(tiny_corpus.recipe), "--run.directory", str(run), "--train.total_tokens", "1024"]
    words += ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f"triaxial: error: {run} is in use by process {first.pid} on {socket.gethostname()} (job 4711), running for "
        f"0 s. Stop it first, or choose another --run.directory\n"
    )
    assert first.poll() is None
    assert contents(run) == before, "the second wrote nothing"

    first.kill()
    first.wait()
    assert main(words) == 0
    assert "watching" not in capsys.readouterr().err, "on one machine the lock tells at once"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1] == 2
    assert not (run / ".owner.json").exists(), "a job that ends deletes its record"


def test_jobs_of_two_machines_decide_by_the_record(holder, tmp_path):
    run = tmp_path / "run"
    first, said = holder("1", beat_s=0.1, machine=["node1"])
    assert said == "held"
    second, refused = holder("2", silent_s=LONG_S, machine=["node2"])
    assert f"is in use by process {first.pid} on node1 (job 1), running for" in refused
    assert second.wait(timeout=60) == 2

    first.kill()
    first.wait()
    third, said = holder("3", beat_s=0.1, silent_s=1.0, machine=["node2"])
    assert said == "held", "the first job was silent for a second"
    third.stdin.close()
    assert third.wait(timeout=60) == 0
    warning = f"{run} was last used by process {first.pid} on node1 (job 1), running for "
    assert warning in third.stderr.read()


def test_a_job_that_was_cut_off_and_replaced_writes_nothing_more(holder, tmp_path):
    first, _ = holder("1", beat_s=0.1, machine=["node1"])
    first.send_signal(signal.SIGSTOP)
    second, said = holder("2", beat_s=0.1, silent_s=1.0, machine=["node2"])
    assert said == "held"
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=60) == 2
    assert f"was taken by process {second.pid} on node2 (job 2)" in first.stderr.read()
    assert second.poll() is None
    assert json.loads((tmp_path / "run" / ".owner.json").read_text())["host"] == "node2"


@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
def test_a_beat_syncs_no_folder_and_the_next_job_removes_what_a_killed_one_left(holder, tmp_path):
    """SIGKILL at the fourth fsync of the thread that beats, which is that of its fourth record."""
    trace = ["strace", "-f", "-y", "-qq", "-e", "trace=fsync", "-e", "inject=fsync:signal=KILL:when=4"]
    first, said = holder("1", beat_s=0.05, trace=[*trace, "-o", tmp_path / "trace"])
    assert said == "held"
    first.wait(timeout=60)
    assert len(list((tmp_path / "run").glob(".owner.json.*"))) == 1
    assert (tmp_path / "trace").read_text().count(f"{tmp_path}/run>") == 1
    assert holder("2")[1] == "held"
    assert not list((tmp_path / "run").glob(".owner.json.*"))


OWNER = {"host": "node1", "machine": "m", "pid": 1, "job_id": None, "token": "t", "running_s": 0.0, "beats": 0}


@pytest.mark.parametrize(
    "record",
    [
        '{"host": "node1", "pi',
        "[" * 100_000,
        *(json.dumps({**OWNER, **wrong}) for wrong in ({"running_s": []}, {"running_s": float("nan")}, {"beats": "x"})),
    ],
)
def test_an_unreadable_record_does_not_block_a_job(holder, tmp_path, record):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".owner.json").write_text(record)
    _, said = holder("1", beat_s=0.05)
    assert said == "held"
    _, refused = holder("2")
    assert "(job 1), running for" in refused
    ends_at = time.monotonic() + 60
    while json.loads((tmp_path / "run" / ".owner.json").read_text())["beats"] < 3:
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def test_the_beat_survives_a_folder_in_the_place_of_the_record(holder, tmp_path):
    record = tmp_path / "run" / RECORD
    job, said = holder("1", beat_s=0.05)
    assert said == "held"
    while not record.is_dir():  # a beat between the two calls makes the file again
        record.unlink(missing_ok=True)
        with suppress(FileExistsError):
            record.mkdir()
    time.sleep(0.5)
    record.rmdir()
    ends_at = time.monotonic() + 60
    while not record.exists():
        assert time.monotonic() < ends_at, "the heartbeat has ended"
        time.sleep(0.05)
    job.stdin.close()
    assert job.stderr.read() == ""


def test_a_record_cannot_steer_the_terminal():
    owner = Owner("node\x1b[2J", "m", 1, "job\n", "t")
    assert str(owner) == "process 1 on node\\x1b[2J (job job\\n), running for 0 s"


@pytest.mark.parametrize("has_written", [False, True])
def test_a_process_that_ends_while_it_takes_the_lock_leaves_no_record(tmp_path, has_written):
    """A signal ends a rank from another thread, which closes `held` and does not wait for the main thread."""
    record = tmp_path / RECORD
    silent = Owner("elsewhere", "another machine", 1, None, "aa")
    record.write_text(json.dumps(silent.__dict__))
    held = ExitStack()

    def take():
        with suppress(ConfigError):  # it sees that the record is gone
            lock(held, tmp_path, silent_s=0.1 if has_written else 0.5)

    taking = threading.Thread(target=take)
    taking.start()
    ends_at = time.monotonic() + 20
    while has_written and json.loads(record.read_text())["token"] == "aa":
        assert time.monotonic() < ends_at
        time.sleep(0.005)
    if not has_written:
        time.sleep(0.1)
    held.close()
    assert record.exists() != has_written, "another's record stays, ours is gone"
    taking.join()
    assert not record.exists() or json.loads(record.read_text())["token"] == "aa"

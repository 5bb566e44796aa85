"""Killed workers are noticed and replaced, their tasks run again, and no worker outlives its owner."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from data_prep.execution.workers import LocalWorkers, _end_of_stream, _receive, answer
from gpt.errors import ConfigError

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def test_a_killed_worker_is_replaced_and_its_task_is_done(tmp_path, functions, sources, run_stage):
    finished = run_stage(tmp_path / "w", functions.die, sources[:1], functions.Config("p", tmp_path / "log"))
    assert (tmp_path / "w/copy/a.out").read_text() == "pa.in"
    assert finished[0].facts["pid"] != int((tmp_path / "log.pid").read_text())
    assert list((tmp_path / "w").rglob(".*tmp*")) == []


def test_a_worker_killed_from_outside_loses_no_task(tmp_path, functions, sources, run_stage):
    """A real SIGKILL from another process, as the kernel's out-of-memory killer sends it."""
    script = textwrap.dedent(
        f"""
        import os, signal, time
        from pathlib import Path
        mark = Path({str(tmp_path / "log.pid")!r})
        while not mark.exists():
            time.sleep(0.02)
        os.kill(int(mark.read_text()), signal.SIGKILL)
        """
    )
    killer = subprocess.Popen([sys.executable, "-c", script])
    run_stage(
        tmp_path / "w", functions.wait_to_be_killed, sources, functions.Config("p", tmp_path / "log"), n_workers=2
    )
    assert killer.wait(timeout=30) == 0
    assert [(tmp_path / f"w/copy/{name}.out").read_text() for name in "abc"] == ["pa.in", "pb.in", "pc.in"]


def test_a_task_that_kills_its_worker_twice_is_named_in_the_error(tmp_path, functions, sources, run_stage):
    with pytest.raises(ConfigError, match=r"stage 'copy' of a\.in: its worker was killed by SIGKILL, twice"):
        run_stage(tmp_path / "w", functions.die, sources[:1], functions.Config("always", tmp_path / "log"))
    assert list((tmp_path / "w/copy").iterdir()) == []


def test_a_dead_worker_is_noticed_though_its_child_lives(tmp_path, functions, sources, run_stage):
    run_stage(tmp_path / "w", functions.die_with_a_child, sources[:1], functions.Config("p", tmp_path / "log"))
    os.kill(int((tmp_path / "log.child").read_text()), signal.SIGKILL)
    assert (tmp_path / "w/copy/a.out").read_text() == "pa.in"


def test_half_an_answer_counts_as_none():
    """A worker dies while it sends, and a child of it keeps the pipe open."""
    ours, theirs = multiprocessing.Pipe()
    os.write(theirs.fileno(), (1000).to_bytes(4, "big") + b"the first part of a message of 1000 bytes")
    _end_of_stream(ours)
    assert _receive(ours) is None
    theirs.close()


def test_a_worker_that_died_while_idle_costs_no_job_an_attempt(tmp_path, functions):
    workers = LocalWorkers(1)
    try:
        assert list(workers.run(functions.identity, [1])) == [(0, 2)]
        before = workers._workers[0].process
        os.kill(before.pid, signal.SIGKILL)
        before.join()
        # The job itself ends a worker too, and a job may do that once.
        assert list(workers.run(functions.die_once, [tmp_path / "mark"])) == [(0, "done")]
        assert workers.longest() is None
    finally:
        workers.close()


def test_the_longest_job_is_known_while_it_runs(functions):
    workers, seen = LocalWorkers(2), []
    try:
        for _ in workers.run(functions.sleep, [0.0, 30.0], name=lambda seconds: f"a sleep of {seconds} s"):
            seen.append(workers.longest())
            break
    finally:
        pid = next(worker.process.pid for worker in workers._workers if worker.job is not None)
        workers.close()  # in the middle of a job
    assert seen[0].name == "a sleep of 30.0 s"
    assert seen[0].where == f"pid {pid}"
    assert not _is_running(pid)


@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_with_their_owner(tmp_path, functions, busy):
    script = textwrap.dedent(
        """
        import os, signal, sys, time
        from data_prep.execution.workers import LocalWorkers
        import stage_functions
        if __name__ == "__main__":
            workers = LocalWorkers(2)
            assert sorted(workers.run(stage_functions.identity, [1, 2, 3])) == [(0, 2), (1, 4), (2, 6)]
            print(*[worker.process.pid for worker in workers._workers], flush=True)
            if BUSY:
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                list(workers.run(stage_functions.sleep, [300, 300]))
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    (tmp_path / "code" / "owner.py").write_text(script.replace("BUSY", str(busy)))
    here = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "code" / "owner.py")],
        stdout=subprocess.PIPE,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here}"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    for _ in range(500):
        alive = [pid for pid in pids if _is_running(pid)]
        if not alive:
            break
        time.sleep(0.02)
    assert alive == []


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_zero_workers_are_an_error():
    with pytest.raises(ConfigError, match="workers = 0"):
        LocalWorkers(0)


def test_a_lack_of_memory_or_threads_is_a_fault_of_the_machine():
    def fail(error):
        raise error

    for error in (MemoryError(), RuntimeError("can't start new thread")):
        kind, line = answer(fail, error)
        assert (kind, "again, with fewer workers" in line) == ("fault", True)
    assert answer(fail, RuntimeError("other"))[0] == "error"

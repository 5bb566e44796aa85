"""The ledger of time that real processes write, one of which is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt.telemetry.goodput import REPEATED, read_account, read_rows
from gpt.telemetry.time_ledger import TimeLedger, process_started_at

REPOSITORY = Path(__file__).parents[3]

# Makes the steps after first up to last, with a save at each multiple of 4; prints its start and the end of each step.
PROCESS = """
import sys, time
from pathlib import Path
from gpt.telemetry.time_ledger import TimeLedger

first, last = int(sys.argv[2]), int(sys.argv[3])
with TimeLedger(Path(sys.argv[1]), world_size=2, restart_count=int(sys.argv[4])) as ledger:
    with ledger.span("start_up/loading"):
        pass
    ledger.resume(step=first, tokens=100 * first)
    for step in range(first + 1, last + 1):
        with ledger.span("data"):
            pass
        with ledger.span("training"):
            with ledger.span("sampling"):  # of nested spans, the innermost counts
                pass
            time.sleep(0.002)
        ledger.step_done(step=step, tokens=100 * step)
        if step % 4 == 0:
            with ledger.span("saving"):
                pass
            ledger.write()
        print(ledger.started_at, time.monotonic(), flush=True)
    if sys.argv[4] == "0":
        print("now", flush=True)
        time.sleep(60)
"""


def take_steps(path, first, last, *, restart_count):
    """Run PROCESS; kill the one with restart_count 0. Return when it started and when it printed its last line."""
    command = [sys.executable, "-c", PROCESS, *map(str, (path, first, last, restart_count))]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        for line in process.stdout:
            if line == "now\n":
                process.send_signal(signal.SIGKILL)
            else:
                lines.append([float(word) for word in line.split()])
        assert process.wait(timeout=60) == (-signal.SIGKILL if restart_count == 0 else 0)
    return lines[0][0], lines[-1][1]


def test_the_phases_add_up_to_the_wall_time_across_a_kill(tmp_path):
    path = tmp_path / "ledger.jsonl"
    before = time.monotonic()
    started, _ = take_steps(path, 0, 10, restart_count=0)
    with path.open("ab") as file:
        file.write(b'{"process": "cut short by the')
    _, ended = take_steps(path, 8, 20, restart_count=1)
    found = read_account(path)
    tick_s = 2 / os.sysconf("SC_CLK_TCK")  # the kernel measures starts in ticks
    assert ended - started - tick_s <= found.wall_s <= time.monotonic() - before + tick_s
    assert found.wall_s == pytest.approx(sum(p.elapsed_s + p.down_s for p in found.processes), abs=1e-6)
    assert [(p.from_step, p.step, p.restart_count, p.world_size) for p in found.processes] == [
        (0, 10, 0, 2),
        (8, 20, 1, 2),
    ]
    assert (found.step, found.tokens, found.repeated_steps) == (20, 2000, 2)
    training = [p.seconds["training"] for p in found.processes]
    # steps 9 and 10 of the first process; its time after the last row counts as "down"
    rows = [row for row in read_rows(path) if row["process"] == found.processes[0].process]
    assert found.seconds[REPEATED] == pytest.approx(training[0] - at_step(rows, 8), abs=1e-6)
    assert found.seconds["training"] == pytest.approx(sum(training) - found.seconds[REPEATED], abs=1e-6)
    assert 0 < found.goodput < 1
    for process in found.processes:
        assert set(process.start_up) == {"imports", "preparing", "loading"}
        assert process.first_step_s >= 0.002
        assert process.seconds["training"] >= 0.002 * (process.step - process.from_step)


def at_step(rows, step):
    return next(row["seconds"]["training"] for row in rows if row["step"] == step)


def test_a_ledger_writes_only_with_a_path_and_creates_no_folder(tmp_path):
    for path in (None, tmp_path / "not there" / "ledger.jsonl"):
        with TimeLedger(path) as ledger, ledger.span("training"):
            ledger.write(step=1, tokens=1)
    assert list(tmp_path.iterdir()) == []


def test_the_start_of_a_process_comes_from_the_kernel():
    assert 0 <= time.monotonic() - process_started_at() < 3600

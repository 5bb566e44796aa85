"""The ledger of time: what a process writes, what is left of a killed one, and how processes add up."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt.telemetry.goodput import REPEATED, account, read_account, read_rows
from gpt.telemetry.time_ledger import TimeLedger, process_started_at

REPOSITORY = Path(__file__).parents[3]

# Takes steps first..last, with a checkpoint at each multiple of 4, and prints when it started and has done each.
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
            with ledger.span("sampling"):  # the innermost counts
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
    """Run PROCESS, the one with restart_count 0 until it is killed; when it started and when it was last heard of."""
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


def test_the_parts_add_up_to_the_wall_time_across_a_kill(tmp_path):
    path = tmp_path / "ledger.jsonl"
    before = time.monotonic()
    started, _ = take_steps(path, 0, 10, restart_count=0)
    with path.open("ab") as file:
        file.write(b'{"process": "cut short by the')
    _, ended = take_steps(path, 8, 20, restart_count=1)
    found = read_account(path)
    tick_s = 2 / os.sysconf("SC_CLK_TCK")  # the kernel tells starts by the tick
    assert ended - started - tick_s <= found.wall_s <= time.monotonic() - before + tick_s
    assert found.wall_s == pytest.approx(sum(p.elapsed_s + p.down_s for p in found.processes), abs=1e-6)
    assert [(p.from_step, p.step, p.restart_count, p.world_size) for p in found.processes] == [
        (0, 10, 0, 2),
        (8, 20, 1, 2),
    ]
    assert (found.step, found.tokens, found.repeated_steps) == (20, 2000, 2)
    training = [p.seconds["training"] for p in found.processes]
    # steps 9 and 10 of the first, each at least as long as its sleep; what the last row did not have is "down"
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


def row(process, step, training_s, *, from_step=0, take=0, elapsed_s, time=0.0, monotonic_s=0.0, boot="", **seconds):
    return {
        "process": process,
        "host": "h",
        "boot": boot,
        "restart_count": 0,
        "world_size": 1,
        "take": take,
        "from_step": from_step,
        "step": step,
        "tokens": step,
        "time": time,
        "monotonic_s": monotonic_s,
        "elapsed_s": elapsed_s,
        "seconds": {"training": training_s, **seconds},
    }


def test_a_rewind_and_then_a_restart_from_before_it():
    """To 100, back to 80 and on to 120; a new process from 60 to 200: all past 60 of the first one was for nothing."""
    first = [
        row("a", 50, 50.0, elapsed_s=60.0, time=1060.0),
        row("a", 100, 100.0, elapsed_s=120.0, time=1120.0),
        row("a", 80, 100.0, from_step=80, take=1, elapsed_s=130.0, rewinding=10.0, time=1130.0),
    ]
    found = account([*first, row("a", 120, 140.0, from_step=80, take=1, elapsed_s=170.0, rewinding=10.0, time=1170.0)])
    assert (found.seconds[REPEATED], found.repeated_steps, found.seconds["training"]) == (20.0, 20, 120.0)
    assert found.wall_s == 170.0
    second = [
        row("b", 0, 0.0, from_step=None, elapsed_s=3.0, time=1183.0, **{"start_up/joining": 3.0}),
        row("b", 60, 0.0, from_step=60, elapsed_s=5.0, time=1185.0),
        row("b", 200, 140.0, from_step=60, elapsed_s=150.0, time=1330.0),
    ]
    found = account([*first, row("a", 120, 140.0, from_step=80, take=1, elapsed_s=170.0, time=1170.0), *second])
    assert (found.seconds[REPEATED], found.repeated_steps, found.seconds["training"]) == (80.0, 80, 200.0)
    assert (found.seconds["down"], found.wall_s) == (10.0, 330.0)
    assert account([*first, second[0]]).seconds[REPEATED] == 20.0, "a start-up that failed has lost nothing by itself"


def test_a_clock_that_was_set_back_takes_no_time_away():
    a = row("a", 10, 10.0, elapsed_s=10.0, time=5000.0, monotonic_s=100.0, boot="one")
    b = row("b", 20, 10.0, from_step=10, elapsed_s=10.0, time=1400.0, monotonic_s=117.0, boot="one")
    assert account([a, b]).seconds["down"] == 7.0, "on one machine the monotonic clock knows better"
    assert account([a, {**b, "boot": "another"}]).seconds["down"] == 0.0


def test_rows_that_are_none_are_passed_over(tmp_path):
    path = tmp_path / "ledger.jsonl"
    assert read_account(path) is None
    good = json.dumps(row("a", 1, 1.0, elapsed_s=2.0))
    bad = [
        "[]",
        "7",
        '{"process": "a"}',
        "\x00\xff",
        good.replace("2.0", "NaN"),
        good.replace("1.0", '"x"'),
        "[" * 9999,
    ]
    path.write_text("\n".join([*bad, good, good[:40]]), encoding="latin-1")
    assert len(list(read_rows(path))) == 1
    assert read_account(path).wall_s == 2.0


def test_only_a_ledger_with_a_path_writes_and_none_makes_the_folder(tmp_path):
    for path in (None, tmp_path / "not there" / "ledger.jsonl"):
        with TimeLedger(path) as ledger, ledger.span("training"):
            ledger.write(step=1, tokens=1)
    assert list(tmp_path.iterdir()) == []


def test_the_kernel_tells_when_a_process_started():
    assert 0 <= time.monotonic() - process_started_at() < 3600

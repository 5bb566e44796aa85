"""The time account of a real run of two processes that is killed several times."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from gpt.telemetry.goodput import read_account

KILLS = 4


@pytest.mark.rehearse
def test_the_account_of_a_run_that_is_killed_several_times(tiny_corpus, tmp_path):
    run = tmp_path / "run"
    words = ["--nproc", 2, "--run.directory", run, "--metrics.wandb", "disabled", "--train.total_tokens", 512 * 120]
    command = [sys.executable, "-m", "launch.main", "train", tiny_corpus.recipe, *words]
    chance = random.Random(5)
    began_at, first_step_at = time.monotonic(), None
    for attempt in range(KILLS + 1):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        kill_after = chance.randrange(3, 20) if attempt < KILLS else None
        with subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            steps = 0
            for line in process.stdout:
                steps += " loss " in line
                first_step_at = first_step_at or (time.monotonic() if steps else None)
                if steps == kill_after:
                    process.send_signal(signal.SIGKILL)  # its ranks die with it
            status = process.wait(timeout=100)
        assert status == (0 if attempt == KILLS else -signal.SIGKILL)
        while attempt < KILLS and any_rank_left(run):
            time.sleep(0.05)
    ended_at = time.monotonic()
    found = read_account(run / "ledger.jsonl")
    assert len(found.processes) == KILLS + 1
    assert found.step == 120
    assert ended_at - first_step_at - 5 < found.wall_s < ended_at - began_at, "5 s for the end of the launcher"
    assert found.wall_s == pytest.approx(sum(p.elapsed_s + p.down_s for p in found.processes))
    assert all(p.down_s > 0 for p in found.processes[1:])
    lines = [json.loads(line) for line in (run / "metrics.superseded.jsonl").read_text().splitlines()]
    lost = [line for line in lines if "loss" in line]
    assert found.repeated_steps > 0
    assert 0 <= len(lost) - found.repeated_steps <= 3 * KILLS, "steps after the last row of a killed process"
    assert 0 < found.seconds["repeated"] < sum(line["step_s"] for line in lost) + 0.01
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found.seconds["training"] < sum(line["step_s"] for line in kept if "loss" in line) + 0.01


def any_rank_left(run):
    listed = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, text=True, check=False).stdout.split()
    return [pid for pid in listed if int(pid) != os.getpid()]

"""The clock is set back a day while a run trains: no file and no decision of the run depends on the wall clock."""

import json
import os
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from gpt.telemetry.goodput import read_account
from launch.main import main
from launch.runs.history import read_history
from parallel.engines.native import NativeEngine

DAY_S = 86_400


def check_whole(run, *, last_step):
    """Check what must hold for a run directory, whatever the clock shows."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in records if "loss" in line] == list(range(1, last_step + 1))
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == [f"step-{step:09}" for step in (last_step - 4, last_step)], "the newest by step, two of them"
    account = read_account(run / "ledger.jsonl")
    assert account.step == last_step
    assert account.repeated_steps == 0
    assert account.wall_s < DAY_S / 2
    assert all(seconds >= 0 for seconds in account.seconds.values()), account.seconds
    assert [process.step for process in account.processes][-1] == last_step
    history = read_history(run)
    assert not history.problems
    assert [stored.step for stored in history.checkpoints] == [last_step - 4, last_step]


def test_the_clock_set_back_in_a_run_and_while_it_is_down(tiny_corpus, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    words = ["train", str(tiny_corpus.recipe), "--run.directory", str(run), "--metrics.wandb", "disabled"]
    words += ["--run.peak_flops_per_s", "1e12", "--train.stop_after_s", "3600"]
    real, step = time.time, NativeEngine.optimizer_step
    back = {"days": 0, "calls": 0}
    monkeypatch.setattr(time, "time", lambda: real() - DAY_S * back["days"])

    def setting_back(engine, *args, **kwargs):
        back["calls"] += 1
        back["days"] += back["calls"] == 6
        return step(engine, *args, **kwargs)

    monkeypatch.setattr(NativeEngine, "optimizer_step", setting_back)
    assert main([*words, "--train.total_tokens", "4096"]) == 0
    assert back["days"] == 1
    rows = [json.loads(line)["time"] for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert min(rows) < rows[0] - DAY_S / 2, "the clock did go back"
    check_whole(run, last_step=8)
    back["days"] = 9
    for path in (run / "checkpoints").iterdir():
        os.utime(path, (real() + DAY_S, real() + DAY_S))  # now they seem to be saved in the future
    assert main(words) == 0
    assert f"resumed from {run}/checkpoints/step-000000008" in capsys.readouterr().out
    check_whole(run, last_step=12)


LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib*/faketime/libfaketimeMT.so.1")


@pytest.mark.rehearse
@pytest.mark.timeout(1200)
def test_two_ranks_and_their_launcher_with_the_clock_set_back_and_one_rank_killed(tiny_corpus, launched, tmp_path):
    """libfaketime in every process sets back the wall clock and file times by a day, but not the monotonic clock."""
    found = [path for pattern in LIBRARIES for path in Path("/").glob(pattern[1:])]
    if not found:
        pytest.skip("libfaketime is not installed: apt-get install faketime")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = {"LD_PRELOAD": str(found[0]), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1"}
    faked |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    shown = subprocess.run(["date", "+%s"], env={**os.environ, **faked}, capture_output=True, text=True, check=True)
    assert abs(int(shown.stdout) - time.time()) < 60
    began_at, words = time.monotonic(), ["--train.total_tokens", 512 * 80, "--nproc", 2]
    with launched.Launched(tiny_corpus.recipe, tmp_path / "plain", *words) as plain:
        assert plain.end() == 0, plain.errors()
    with launched.Launched(tiny_corpus.recipe, tmp_path / "run", *words, "--max-restarts", 1, environment=faked) as job:
        job.wait_for_step(9)
        clock.write_text("-1d")
        time.sleep(1.5)  # the library looks once a second
        job.wait_for_step(job.step() + 9)
        job.kill(1)
        assert job.end() == 0, job.errors()
    times = [datetime.fromisoformat(event.split('"time": "')[1][:29]).timestamp()
             for event in (job.run / "events.jsonl").read_text().splitlines()]  # fmt: skip
    assert times[-1] < times[0] - DAY_S / 2, "the ranks saw the clock go back"
    assert launched.losses(job.run) == launched.losses(plain.run)
    assert launched.saved(job.run) == launched.saved(plain.run)
    account = read_account(job.run / "ledger.jsonl")
    assert all(seconds >= 0 for seconds in account.seconds.values()), account.seconds
    assert account.wall_s < time.monotonic() - began_at

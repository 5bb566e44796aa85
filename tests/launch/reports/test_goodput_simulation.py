"""benchmarks/goodput_simulation.py against Daly's formulas, written out here once more."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
DAYS, FAULTS = 54, 419
MEAN_S = DAYS * 86_400 / FAULTS


def simulation(tmp_path, *words):
    file = tmp_path / "result.json"
    command = [sys.executable, REPOSITORY / "benchmarks" / "goodput_simulation.py", "--json", file, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, cwd=REPOSITORY)
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(file.read_text())
    return json.loads(file.read_text())


def test_exponential_faults_and_blocking_saves_are_dalys_model(tmp_path):
    recovery_s, stall_s = 900.0, 120.0
    words = ["--detect-s", 300, "--restart-s", 300, "--load-s", 240, "--first-step-s", 60, "--seeds", 150]
    found = simulation(tmp_path, *words, "--stall-s", stall_s, "--write-s", stall_s, "--interval-s", 600, 1800, 7200)
    assert found["recovery_s"] == recovery_s
    means = {}
    for row in found["results"]:
        if row["faults"] == "exponential":
            segment = math.exp((row["interval_s"] + stall_s) / MEAN_S) - 1
            expected = row["interval_s"] / (MEAN_S * math.exp(recovery_s / MEAN_S) * segment)
            # 0.003: four standard errors of 150 seeds at the widest spread (0.009), rounded up
            assert row["goodput"] == pytest.approx(expected, abs=0.003), row
            means[row["interval"]] = row["goodput"]
    assert means["Daly"] > max(means[name] for name in ("600 s", "7200 s")), "its interval is the best"
    clustered = [row for row in found["results"] if row["faults"] == "clustered"]
    assert all(0 < row["least"] <= row["goodput"] <= row["greatest"] < 1 for row in clustered)
    assert all(row["spread"] > 0 for row in clustered)


def test_phases_come_from_the_benchmark_of_resuming(tmp_path):
    parts = {
        "launching": 1,
        "imports": 2,
        "joining": 4,
        "verifying": 8,
        "building": 16,
        "loading": 32,
        "first step": 64,
    }
    measured = {"ours": {"phases_s": parts}, "save": {"stall_s": 0.5, "write_s": 2}}
    (tmp_path / "resume.json").write_text(json.dumps(measured))
    found = simulation(tmp_path, "--resume", tmp_path / "resume.json", "--detect-s", 10, "--seeds", 2)
    phases = {"detect_s": 10, "restart_s": 7, "load_s": 56, "first_step_s": 64, "stall_s": 0.5, "write_s": 2.5}
    assert (found["phases"], found["recovery_s"]) == (phases, 137)


@pytest.mark.parametrize(("mean_h", "optimum_min", "rounded_by"), [(24, 117, 0.5), (6, 57, 0.5), (0.25, 9.1, 0.05)])
def test_the_best_interval_is_the_one_that_daly_publishes(tmp_path, mean_h, optimum_min, rounded_by):
    """Figures 3 to 5 of the paper: saves of 5 minutes."""
    days = mean_h * FAULTS / 24
    found = simulation(tmp_path, "--days", days, "--stall-s", 300, "--write-s", 300, "--seeds", 2)
    assert found["best_interval_s"]["daly"] / 60 == pytest.approx(optimum_min, abs=rounded_by)

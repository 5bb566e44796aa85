"""`triaxial plan` with the profile of this machine: the kept one, a named one, and what it cannot tell."""

import json

import pytest
from made_profile import made_profile

from launch.main import main
from launch.planning.measured_plan import notes_on_profile
from launch.profiling.machine_profile import identity_here, kept_at, threads_here
from parallel.planner.machine.profile import write_profile

RECIPE = ["plan", "tinystories_10m", "--parallel.precision", "fp32"]


@pytest.fixture
def profile(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = kept_at(identity_here())
    path.parent.mkdir(parents=True)
    write_profile(path, made_profile(identity_here(), (threads_here(1), threads_here(2))))
    return path


def test_here_reads_the_kept_profile_and_plans_for_all_measured_ranks(profile, tmp_path, capsys):
    report = tmp_path / "plan.json"
    page = tmp_path / "plan.html"
    assert main([*RECIPE, "--here", "--keep", "4", "--json", str(report), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "by the profile of this machine of 2026-11-30" in printed
    assert "stack measured on this machine" in printed
    plans = json.loads(report.read_text())["plans"]
    assert [each["gpus"] for each in plans] == [1, 2]
    for each in plans:
        best = each["layouts"][0]
        assert sum(best["parts_s"].values()) == pytest.approx(best["step_s"])
        assert best["parts_s"]["overhead"] > 0
    assert "overhead" in page.read_text()


def test_a_named_profile_needs_no_gpus_and_plans_a_given_layout(profile, capsys):
    words = ["--calibrate", str(profile), "--gpus", "2xCPU", "--layout", "--parallel.tensor", "2"]
    assert main([*RECIPE, *words]) == 0
    assert "tensor=2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "8xH100"], r"--gpus 8xH100 is invalid with this profile: it is of"),
        (["--gpus", "4xCPU"], r"--gpus 4xCPU is invalid: the profile has times of 1, 2 ranks, not of 4"),
        (["--parallel.precision", "bf16"], r"parallel.precision = 'bf16' is invalid with this profile"),
        (["--here", "--gpus", "2xCPU"], r"name the GPUs once"),
    ],
)
def test_requests_that_the_profile_cannot_answer_are_one_line(profile, words, message, capsys):
    import re

    assert main([*RECIPE, "--calibrate", str(profile), *words]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert len(said.strip().splitlines()) == 1


def test_settings_beyond_the_profile_are_noted(profile):
    from launch.config.run_config import read_run_config

    config = read_run_config("tinystories_10m", ["--parallel.compile", "true"])
    assert "uncompiled" in notes_on_profile(config, made_profile(identity_here()))[0]

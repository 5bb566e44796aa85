"""The profile of this machine: where it is kept, when it is refused, and what it says of itself.

`launch.profiling.profile_ranks` measures in real processes, two kernels and one message here.
"""

import dataclasses
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_profile import made_profile

from gpt.errors import ConfigError
from launch.main import main
from launch.profiling import profile_ranks
from launch.profiling.machine_profile import (
    SPREAD,
    identity_here,
    kept_at,
    machine_cluster,
    profile_for_here,
    summary,
    threads_here,
    usual_ranks,
)
from parallel.planner.machine.profile import SCHEMA, ProductTime, RanksTables, write_profile
from parallel.planner.published.validate import covering_spread


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A profile kept for this machine, in a cache of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = kept_at(identity_here())
    path.parent.mkdir(parents=True)
    profile = made_profile(identity_here(), (threads_here(1), threads_here(2)))
    write_profile(path, profile)
    return path, profile


def test_the_kept_profile_is_found_by_the_machine(kept, tmp_path):
    path, profile = kept
    assert path.is_relative_to(tmp_path / "cache" / "triaxial" / "profiles")
    assert profile_for_here(None).measured_at == profile.measured_at
    assert kept_at(replace(identity_here(), cores=999)) != path


def test_profiles_that_do_not_hold_here_are_refused_in_one_line(kept, tmp_path, monkeypatch):
    _, profile = kept
    other = tmp_path / "other.json"
    write_profile(other, replace(profile, machine=replace(profile.machine, cpu="Intel Xeon")))
    with pytest.raises(ConfigError, match="of another machine: the CPU was Intel Xeon and is") as caught:
        profile_for_here(other)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    with pytest.raises(
        ConfigError, match=r"^--here with .*: its 1 ranks had \d+ threads each, not 77 as in training here"
    ):
        profile_for_here(None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with pytest.raises(
        ConfigError, match=r"no profile of this machine is kept at .*\. Measure it: triaxial doctor --measure"
    ):
        profile_for_here(None)


def test_a_machine_is_a_cluster_whose_devices_share_its_memory(kept):
    _, profile = kept
    one, two = (machine_cluster(profile, None, ranks=ranks) for ranks in (1, 2))
    assert one.gpu.memory_gib == 2 * two.gpu.memory_gib
    assert one.gpu.peak == pytest.approx(0.1)  # TFLOP/s of the fastest product
    assert two.machine is not None


def test_the_summary_warns_of_a_busy_machine(kept):
    _, profile = kept
    assert not any(line.startswith("warning") for line in summary(profile))
    busy = replace(profile, by_ranks=(replace(profile.by_ranks[0], spread=0.5, waiting=0.9),))
    assert "spread 50%, no core for 90% of the time. Measure again" in summary(busy)[-1]


def test_ranks_that_are_measured_without_being_asked():
    here = identity_here()
    assert usual_ranks(replace(here, cores=2, gpus=0)) == (1, 2)
    assert usual_ranks(replace(here, cores=100, gpus=0)) == (1, 2, 4, 8)
    assert usual_ranks(replace(here, cores=100, gpus=6)) == (1, 2, 4)


def test_rows_of_ranks_are_joined_by_the_mean_of_their_seconds():
    row = ProductTime("fp32", "forward", 4, 4, 4, 1.0)
    other = dataclasses.asdict(replace(row, seconds=3.0))
    assert profile_ranks._mean(ProductTime, [dataclasses.asdict(row), other]) == replace(row, seconds=2.0)


def test_two_turns_of_steps_are_averaged_and_the_kernels_come_from_the_first(kept):
    """The speed of a shared host drifts between the steps of one process and those of several."""
    _, profile = kept
    first = profile.by_ranks[1]
    slower = [replace(each, step=3 * each.step, forward=3 * each.forward) for each in first.samples]
    found = profile_ranks.joined(first, RanksTables(2, first.threads, 0.04, 0.5, samples=tuple(slower)))
    assert (found.products, found.collectives) == (first.products, first.collectives)
    assert [each.step for each in found.samples] == pytest.approx([2 * each.step for each in first.samples])
    assert [replace(a, forward=0.0, step=0.0) for a in found.samples] == [
        replace(b, forward=0.0, step=0.0) for b in first.samples
    ]
    assert (found.spread, found.waiting) == (pytest.approx(0.03), 0.5)
    for again, parts in ((False, (4, 2)), (True, (1, 1))):
        assert profile_ranks.parts_of(2, ["bf16"], again=again) == parts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "p.json"], "--output is an option of --measure"),
        (["--measure", "--ranks", "3"], "--ranks 3 is invalid: must be a power of two from 1 to"),
        (["--measure", "--output", "/nowhere/p.json"], "--output"),
    ],
)
def test_wrong_options_are_one_line(words, message, capsys):
    assert main(["doctor", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.rehearse
@pytest.mark.timeout(900)
def test_the_whole_profile_is_measured_and_planned_with(tmp_path, capsys):
    """`doctor --measure`, then `plan --calibrate`: minutes."""
    path = tmp_path / "profile.json"
    assert main(["doctor", "--measure", "--output", str(path), "--precision", "bf16"]) == 0
    assert json.loads(path.read_text())["schema"] == SCHEMA
    capsys.readouterr()
    assert main(["plan", "tinystories_10m", "--calibrate", str(path), "--parallel.compile", "false"]) == 0
    assert "measured on this machine" in capsys.readouterr().out


def test_the_interval_covers_the_errors_that_the_results_show():
    text = (Path(__file__).parents[3] / "docs" / "results" / "training" / "planner.md").read_text(encoding="utf-8")
    table = text.split("| layout | predicted s | measured s |", 1)[1].split("\n\n", 1)[0]
    errors = [float(p) / float(m) - 1 for p, m in re.findall(r"\| ([\d.]+) \| ([\d.]+) \| [+-]", table)]
    assert len(errors) == 12
    assert pytest.approx(covering_spread(errors), abs=0.005) == SPREAD
    assert covering_spread([0.1] * 9 + [9.0]) == pytest.approx(math.log(1.1) / 1.645, rel=1e-3)

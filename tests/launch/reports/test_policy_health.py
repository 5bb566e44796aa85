"""From metrics.jsonl of a run that trains a policy to findings."""

import json

import pytest

from gpt.post_training.analysis.diagnosis import diagnose
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
from launch.main import main
from launch.reports.policy_health import diagnosis_lines, policy_metrics, policy_prefix
from launch.runs.history import read_history


@pytest.fixture(scope="module")
def sick(tabular, tmp_path_factory):
    """A run without KL penalty, with two steps an iteration and one NaN reward."""
    return tabular.write_run(
        tmp_path_factory.mktemp("runs") / "sick", tabular.World(beta=0.0, lr=2.0), steps=2, nan_at=30
    )


def test_the_iteration_is_that_of_the_metric_not_of_the_step(sick):
    metrics = policy_metrics(read_history(sick).metrics)
    assert "iteration" not in metrics
    assert metrics["kl"].iterations.tolist() == list(range(1, 61))
    assert len(metrics["reward"].values) == 59


def test_the_faults_are_found_in_the_files_of_a_run(sick, tabular, tmp_path):
    lines = diagnosis_lines(sick)
    assert [line.partition(",")[0] for line in lines] == [
        "collapsed entropy",
        "forgetting",
        "NaN rewards",
        "exploding KL",
    ]
    assert "NaN rewards, iteration 30: no mean reward in 1 of 60 iterations." in lines[2]
    assert diagnosis_lines(tabular.write_run(tmp_path / "well", tabular.World())) == []


def test_a_run_without_a_policy_has_none_of_it(written_runs, tmp_path, capsys):
    written_runs.write_run(tmp_path / "run", steps=5)
    history = read_history(tmp_path / "run")
    assert policy_prefix(history.metrics) is None
    assert diagnose(policy_metrics(history.metrics)) == []
    assert diagnosis_lines(tmp_path / "run") == []
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "policy:" not in capsys.readouterr().out


def test_the_report_says_it_on_the_terminal_and_in_json(sick, tabular, tmp_path, capsys):
    assert main(["report", str(sick), "--json", str(tmp_path / "r.json")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "- collapsed entropy, since iteration 15: entropy" in said
    facts = json.loads((tmp_path / "r.json").read_text())
    fault = facts["policy_faults"][0]
    assert (fault["fault"], fault["first_iteration"], fault["lasting"]) == ("collapsed entropy", 15, True)
    well = tabular.write_run(tmp_path / "well", tabular.World(iterations=20))
    assert main(["report", str(well)]) == 0
    said = capsys.readouterr().out
    assert "policy: no known fault in its metrics" in said
    assert "KL " in said
    assert "nats a response" in said


def test_other_objectives_have_their_own_prefix(tmp_path):
    with MetricsWriter(MetricsConfig(wandb="disabled"), tmp_path, run_config={}, resume_step=None) as writer:
        for step in range(1, 11):
            writer.log(step, {"grpo/kl": -5.0})
    assert diagnosis_lines(tmp_path)[0].startswith("negative KL, since iteration 1: KL -5 nats a response")

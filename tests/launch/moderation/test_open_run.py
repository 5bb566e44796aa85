"""Runs that are no classifier, and windows that do not fit, are refused."""

import pytest

from gpt.errors import ConfigError
from launch.main import main
from launch.moderation.open_run import load_classifier


def test_other_runs_and_windows_are_refused(classifier_run, reward_run, capsys):
    for run in (reward_run.folder / "base", reward_run.run):
        with pytest.raises(ConfigError, match=r"is no classifier run \(objective\.kind = "):
            load_classifier(run)
    with pytest.raises(ConfigError, match="--window 65 is invalid: must be from 2 to the model's context, 64 tokens"):
        load_classifier(classifier_run.run, window=65)
    words = ["moderate", "score", str(reward_run.run), str(classifier_run.folder / "train.jsonl")]
    assert main([*words, "--output", str(reward_run.folder / "x.jsonl")]) == 2
    assert "is no classifier run" in capsys.readouterr().err

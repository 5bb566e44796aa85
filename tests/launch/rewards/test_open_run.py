"""Runs that are no reward runs are refused, and reward runs where a language model is needed."""

import pytest

from gpt.errors import ConfigError
from launch.main import main
from launch.runs.saved_run import load_run


def test_a_language_model_gives_no_reward_and_a_reward_model_no_tokens(reward_run, capsys):
    words = ["--rankings", str(reward_run.folder / "validation")]
    assert main(["score", str(reward_run.folder / "base"), *words]) == 2
    assert "base is not a reward run: its model predicts tokens" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"its model predicts no tokens \(objective\.kind = 'reward'\)"):
        load_run(reward_run.run)

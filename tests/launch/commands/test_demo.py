"""`triaxial demo`: which runs start over, and the summary of its steps. `make demo` runs the whole command."""

import json

import pytest

from gpt.errors import ConfigError
from launch.commands import demo
from launch.config.run_config import read_run_config


def recipe(directory):
    return read_run_config(demo.TRAIN_RECIPE, ["--run.directory", str(directory)])


def test_a_finished_demo_starts_over_and_an_interrupted_one_is_kept(tmp_path):
    config = recipe(tmp_path / "run")
    demo.start_over_if_finished(config)  # nothing there yet
    for tokens, kept in ((config.train.total_tokens - 1, True), (config.train.total_tokens, False)):
        config.run.directory.mkdir(exist_ok=True)
        (config.run.directory / "train_summary.json").write_text(json.dumps({"tokens_seen": tokens}))
        demo.start_over_if_finished(config)
        assert config.run.directory.exists() == kept


def test_a_missing_report_of_a_step_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"train_summary\.json is missing, although the step that writes it succeeded"
    ):
        demo.write_summary(tmp_path, {})

"""`triaxial demo`: which runs start over, and the summary of its steps. `make demo` runs the whole command."""

import json
import signal
import sys

import pytest

from gpt.errors import ConfigError
from launch.commands import demo
from launch.config.run_config import read_run_config
from parallel.checkpoint.folders import list_checkpoints


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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_demo_ends_its_training_which_saves(number, tiny_corpus, launched, tmp_path):
    program = "import sys; from launch.commands.demo import run_command; sys.exit(run_command(sys.argv[1:]))"
    command = [sys.executable, "-c", program]
    endless = ["--train.total_tokens", 10**9, "--nproc", 2]
    with launched.Launched(tiny_corpus.recipe, tmp_path / "run", *endless, command=command) as job:
        job.wait_for_step(1)
        job.process.send_signal(number)
        assert job.end() == 128 + number, job.errors()
    assert not (job.run / ".owner.json").exists(), "no training runs any more"
    assert list_checkpoints(job.run / "checkpoints")


def test_a_missing_report_of_a_step_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"train_summary\.json is missing, although the step that writes it succeeded"
    ):
        demo.write_summary(tmp_path, {})

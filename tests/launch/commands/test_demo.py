"""`triaxial demo`: which runs start over, and the summary of its steps. `make demo` runs the whole command."""

import json
import math
import signal
import sys

import pytest

from gpt.errors import ConfigError
from launch.commands import demo
from launch.config.run_config import read_run_config
from launch.demos.commands import shell_word
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
    program = "import sys; from launch.demos.commands import run_command; sys.exit(run_command(sys.argv[1:]))"
    command = [sys.executable, "-c", program]
    endless = ["--train.total_tokens", 10**9, "--nproc", 2]
    with launched.Launched(tiny_corpus.recipe, tmp_path / "run", *endless, command=command) as job:
        job.wait_for_step(2)  # both ranks have done the first one
        job.process.send_signal(number)
        assert job.end() == 128 + number, job.errors()
    assert not (job.run / ".owner.json").exists(), f"no training runs any more:\n{job.shown()}\n{job.errors()}"
    assert list_checkpoints(job.run / "checkpoints")


def test_the_questions_are_those_of_the_validation_corpus(tiny_corpus, tmp_path):
    config = read_run_config(str(tiny_corpus.recipe), ["--run.directory", str(tmp_path / "run")])
    demo.write_questions(config)
    assert (tmp_path / "run" / "continuations" / "continuations.jsonl").read_text().count("\n") > 4


def test_the_conclusion_compares_with_a_model_that_has_learned_nothing():
    summary = {"validation_loss_nats": math.log(50), "vocab_size": 4096, "unigram_entropy_nats": 5.99}
    first, second, third = demo.conclusion(summary | {"continuations_found": 0.615, "continuations": 200})
    assert first == (
        "Validation loss: 3.91 nats a token. Equal chances for all 4,096 tokens have 8.32, "
        "their frequencies alone 5.99."
    )
    assert second == "It doubts between 50 tokens, not 4,096 (the perplexity)."
    assert third == "It finds which of 4 texts continues a passage in 62% of 200 cases. Guessing finds 25%."


def test_commands_are_shown_as_a_user_types_them():
    assert [shell_word(word) for word in ("--stop", "\n", "Return the")] == ["--stop", "$'\\n'", "'Return the'"]


def test_a_missing_report_of_a_step_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"train_summary\.json is missing, although the step that writes it succeeded"
    ):
        demo.write_summary(tmp_path, {})

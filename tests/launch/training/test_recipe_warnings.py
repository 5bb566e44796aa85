"""Valid settings that are probably a mistake are named at the start of a run."""

import re

import pytest

from launch.config.run_config import read_run_config
from launch.training.recipe_warnings import recipe_warnings
from parallel.megatron.limits import has_transformer_engine


@pytest.mark.parametrize(
    ("overrides", "tokenizer", "words"),
    [
        (["--model.vocab_size", "5000"], 4096, "model.vocab_size = 5,000: the tokenizer has 4,096 tokens"),
        (["--schedule.decay_tokens", "1e11"], 50257, "at its lowest for the last 67% of the run's 300,"),
        (["--train.total_tokens", "1e8"], 50257, "is not shorter than the run of 100,000,000 tokens (191 steps)"),
        (["--schedule.decay_steps", "1000"], 50257, "decay ends at 524,288,000 tokens (step 1,000)"),
    ],
)
def test_a_doubtful_setting_is_named_with_a_better_value(overrides, tokenizer, words):
    ((kind, line),) = recipe_warnings(read_run_config("gpt3_125m", overrides), tokenizer_vocab_size=tokenizer)
    assert kind == "warning"
    assert words in line
    assert re.search("Use |use less|Leave out", line)


def test_a_setting_that_the_engine_cannot_follow_here_is_named():
    if has_transformer_engine():
        pytest.skip("Megatron-core shares sequences here")
    overrides = ["--parallel.engine", "megatron", "--parallel.tensor", "2", "--parallel.compile", "false"]
    ((kind, line),) = recipe_warnings(read_run_config("gpt3_125m", overrides), tokenizer_vocab_size=50257)
    assert kind == "warning"
    assert "parallel.sequence_parallel = true has no effect" in line
    whole = read_run_config("gpt3_125m", [*overrides, "--parallel.sequence_parallel", "false"])
    assert recipe_warnings(whole, tokenizer_vocab_size=50257) == []


@pytest.mark.parametrize("name", ["gpt3_125m", "gpt3_175b"])
def test_shipped_recipes_are_in_no_doubt(name):
    config = read_run_config(name, [])
    assert recipe_warnings(config, tokenizer_vocab_size=config.model.vocab_size) == []

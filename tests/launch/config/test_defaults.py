"""Recipes with few keys get the learning rate and the schedule of the rules."""

import pytest

from gpt.errors import ConfigError
from gpt.model.gpt3_sizes import peak_learning_rate
from launch.config.recipe import apply_overrides, find_recipe, read_toml
from launch.config.run_config import build_run_config, read_run_config
from launch.main import main


@pytest.mark.parametrize("size", ["125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b", "175b"])
def test_the_sizes_of_gpt3_have_the_papers_learning_rates(size):
    table = read_toml(find_recipe(f"gpt3_{size}"))
    stated = table["optimizer"].pop("learning_rate")
    assert build_run_config(table).optimizer.learning_rate == stated


def short(tiny_corpus, *words):
    """The recipe without the keys that have rules."""
    table = read_toml(tiny_corpus.recipe)
    del table["optimizer"], table["schedule"]
    return build_run_config(apply_overrides(table, words))


def test_a_recipe_needs_neither_learning_rate_nor_schedule(tiny_corpus):
    config = short(tiny_corpus)
    assert config.optimizer.learning_rate == peak_learning_rate(config.model.parameters)
    assert (config.schedule.decay_tokens, config.schedule.warmup_tokens) == (6144, 123)
    assert config.schedule.final_fraction == 0.1
    assert short(tiny_corpus, "--train.total_tokens", "20000").schedule.decay_tokens == 20000
    given = short(tiny_corpus, "--schedule.decay_tokens", "4000", "--optimizer.learning_rate", "1e-3")
    assert (given.schedule.warmup_tokens, given.optimizer.learning_rate) == (80, 1e-3)
    assert short(tiny_corpus, "--train.total_tokens", "1").schedule.warmup_tokens == 0
    assert short(tiny_corpus, "--schedule.shape", "constant").schedule.decay_tokens is None


def test_given_values_are_never_replaced(tiny_corpus):
    config = read_run_config(str(tiny_corpus.recipe), [])
    assert (config.optimizer.learning_rate, config.schedule.warmup_tokens, config.schedule.decay_tokens) == (
        3e-3,
        1024,
        20480,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--train.total_tokens -5", "train.total_tokens = -5 is invalid: must be at least 1"),
        (
            "--schedule.warmup_tokens 9000",
            "schedule.warmup_tokens = 9000 is invalid: must be less than train.total_tok",
        ),
        ("--optimizer.kind sgd", "optimizer.learning_rate is missing: set it to a number"),
        ("--run.start_from runs/other", "optimizer.learning_rate is missing: set it to a number"),
        ("--model.n_layers 0", "model.n_layers = 0 is invalid: must be at least 1"),
        ("--model.n_layers many", "model.n_layers = 'many' is invalid: must be a whole number"),
    ],
)
def test_mistakes_are_named_as_without_the_rules(tiny_corpus, words, said):
    with pytest.raises(ConfigError) as raised:
        short(tiny_corpus, *words.split())
    assert str(raised.value).startswith(said)


def test_keys_with_rules_are_not_called_missing(tiny_corpus):
    table = read_toml(tiny_corpus.recipe)
    del (
        table["optimizer"],
        table["train"]["total_tokens"],
        table["model"]["n_layers"],
        table["schedule"]["decay_tokens"],
    )
    with pytest.raises(ConfigError) as raised:
        build_run_config(table)
    assert str(raised.value) == (
        "keys are missing: model.n_layers (a whole number), train.total_tokens (a whole number, or set "
        "train.total_steps or train.epochs). `triaxial config --keys` explains each"
    )


def test_a_short_recipe_trains_and_goes_on_with_more_steps(tiny_corpus, tmp_path, capsys):
    text = tiny_corpus.recipe.read_text().replace("[optimizer]\nlearning_rate = 3e-3\n", "")
    text = text.replace("[schedule]\nwarmup_tokens = 1024\ndecay_tokens = 20480\n", "")
    (tmp_path / "short.toml").write_text(text.replace("total_tokens = 6144", "total_steps = 4"))
    words = ["train", str(tmp_path / "short.toml"), "--run.directory", str(tmp_path / "run")]
    words += ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "learning rate: 0.006 after a warm-up of 41 tokens, then cosine to 0.0006 at 2,048 tokens\n" in shown
    assert "training: 4 steps = 2,048 tokens" in shown
    assert main([*words, "--train.total_steps", "6"]) == 0
    shown = capsys.readouterr().out
    assert "changed since the checkpoint: train.total_tokens: 2048 -> 3072\n" in shown
    assert "changed since the checkpoint: schedule.decay_tokens: 2048 -> 3072\n" in shown
    assert "done: 3,072 tokens in 6 steps" in shown

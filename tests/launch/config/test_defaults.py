"""The rules for the learning rate and the schedule, on the sizes of GPT-3 and on recipes with few keys."""

import itertools
import math

import pytest

from gpt.errors import ConfigError
from launch.config.defaults import learning_rate_for, warmup_tokens_for
from launch.config.recipe import apply_overrides, read_toml
from launch.config.run_config import build_run_config, read_run_config
from launch.main import main

SIZES = ("125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b", "175b")


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_of_gpt3_have_the_papers_learning_rates(size):
    config = read_run_config(f"gpt3_{size}", [])
    assert learning_rate_for(config.model.parameters) == config.optimizer.learning_rate


@pytest.mark.parametrize("size", ["25k", "100k", "330k", "1m"])
def test_small_models_have_nearly_the_learning_rates_of_kaplans_rule(size):
    """Their recipes take 0.003239 - 0.0001395 ln N, where N has no embeddings (arXiv 2001.08361, appendix D.6)."""
    config = read_run_config(f"scaling_{size}", [])
    kaplan = 0.003239 - 0.0001395 * math.log(config.model.non_embedding_parameters)
    assert config.optimizer.learning_rate == pytest.approx(kaplan, rel=0.03)
    assert learning_rate_for(config.model.parameters) == pytest.approx(kaplan, rel=0.2)


def test_the_learning_rate_falls_with_the_size_and_has_no_jump():
    rates = [learning_rate_for(round(10 ** (4 + i / 50))) for i in range(400)]
    assert rates == sorted(rates, reverse=True)
    assert all(b / a > 0.9 for a, b in itertools.pairwise(rates))
    assert rates[-1] == 0.6e-4
    half_way = learning_rate_for(round(math.sqrt(2.7e9 * 6.7e9)))  # in the logarithms of both
    assert half_way == pytest.approx(math.sqrt(1.6e-4 * 1.2e-4), rel=0.02)


def test_the_warm_up_is_a_share_and_at_most_that_of_gpt3():
    assert [warmup_tokens_for(n) for n in (1_000, 10**9, 300 * 10**9)] == [50, 50_000_000, 375_000_000]


def short(tiny_corpus, *words):
    """The recipe without the keys that have rules."""
    table = read_toml(tiny_corpus.recipe)
    del table["optimizer"], table["schedule"]
    return build_run_config(apply_overrides(table, words))


def test_a_recipe_needs_neither_learning_rate_nor_schedule(tiny_corpus):
    config = short(tiny_corpus)
    assert config.optimizer.learning_rate == learning_rate_for(config.model.parameters)
    assert (config.schedule.decay_tokens, config.schedule.warmup_tokens) == (6144, 307)
    assert config.schedule.final_fraction == 0.1
    assert short(tiny_corpus, "--train.total_tokens", "20000").schedule.decay_tokens == 20000
    given = short(tiny_corpus, "--schedule.decay_tokens", "4000", "--optimizer.learning_rate", "1e-3")
    assert (given.schedule.warmup_tokens, given.optimizer.learning_rate) == (200, 1e-3)
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
    assert "learning rate: 0.0017 after a warm-up of 102 tokens, then cosine to 0.00017 at 2,048 tokens\n" in shown
    assert "training: 4 steps = 2,048 tokens" in shown
    assert main([*words, "--train.total_steps", "6"]) == 0
    shown = capsys.readouterr().out
    assert "changed since the checkpoint: train.total_tokens: 2048 -> 3072\n" in shown
    assert "changed since the checkpoint: schedule.decay_tokens: 2048 -> 3072\n" in shown
    assert "done: 3,072 tokens in 6 steps" in shown

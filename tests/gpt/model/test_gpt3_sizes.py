"""A model's shape, batch and learning rate from one number."""

import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.model.gpt3_sizes import (
    MAX_LEARNING_RATE,
    SIZES,
    max_batch_tokens,
    peak_learning_rate,
    shape_of_depth,
    shape_of_parameters,
    warmup_tokens,
)

RECIPES = sorted((Path(__file__).parents[3] / "launch" / "recipes").glob("gpt3_*.toml"))
GPT3 = {"vocab_size": 50257, "n_ctx": 2048}


def test_the_table_is_that_of_the_shipped_recipes():
    tables = [tomllib.loads(path.read_text()) for path in RECIPES]
    rows = {
        (
            *(t["model"][key] for key in ("n_layers", "d_model", "n_heads")),
            t["batch"]["global_batch_tokens"],
            t["optimizer"]["learning_rate"],
        )
        for t in tables
    }
    assert rows == {(s.n_layers, s.d_model, s.n_heads, s.batch_tokens, s.learning_rate) for s in SIZES}
    assert all(t["schedule"]["warmup_tokens"] == warmup_tokens(t["train"]["total_tokens"]) for t in tables)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s.parameters:.0f}")
def test_a_size_of_gpt3_gives_its_row(size):
    config = shape_of_parameters(size.parameters, **GPT3)
    assert (config.n_layers, config.d_model, config.n_heads) == (size.n_layers, size.d_model, size.n_heads)
    assert config.parameters == pytest.approx(size.parameters, rel=0.1)
    assert peak_learning_rate(size.parameters) == size.learning_rate
    assert max_batch_tokens(size.parameters) == size.batch_tokens


def test_any_other_size_is_met():
    """Within 15%; within 60% below 400,000 parameters, where one width is a large step."""
    for exponent in range(50, 110):
        wanted = 10 ** (exponent / 10)
        config = shape_of_parameters(wanted, vocab_size=2048, n_ctx=256)
        assert config.parameters == pytest.approx(wanted, rel=0.6 if wanted < 4e5 else 0.15)
        assert config.d_model % config.n_heads == 0
    # below the smallest width, the smallest model
    assert shape_of_parameters(10, vocab_size=512, n_ctx=64).d_model == 32


def test_a_larger_model_learns_at_a_lower_rate():
    rates = [peak_learning_rate(10 ** (exponent / 10)) for exponent in range(40, 130)]
    assert all(before >= after for before, after in pairwise(rates))
    assert rates[0] == MAX_LEARNING_RATE
    assert peak_learning_rate(2.6e6) == pytest.approx(2e-3, rel=0.05)  # the demo's own rate


def test_depth_gives_a_width_of_64_a_layer():
    small = shape_of_depth(12, **GPT3)
    assert (small.d_model, small.n_heads) == (768, 12)
    with pytest.raises(ConfigError, match="a depth of 0 layers is invalid: must be from 1 to 96"):
        shape_of_depth(0, **GPT3)


def test_the_warm_up_is_a_share_of_a_short_run():
    assert warmup_tokens(300_000_000_000) == 375_000_000
    assert warmup_tokens(1_000_000) == 20_000
    assert warmup_tokens(1) == 1
    assert max_batch_tokens(1e6) == 524_288

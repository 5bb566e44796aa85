"""Counts against built models, and mistakes against their messages."""

import pytest

from gpt.errors import ConfigError, import_extra
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT

SMALL = {"vocab_size": 300, "n_ctx": 32, "n_layers": 3, "d_model": 48, "n_heads": 4}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"tied": False},
        {"bias": False},
        {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "bias": False, "n_kv_heads": 2, "d_ff": 64},
        {"norm": "rmsnorm", "activation": "swiglu"},
    ],
)
def test_parameters_counted_equal_parameters_built(keys):
    config = ModelConfig(**SMALL, **keys)
    padding = (config.padded_vocab_size - config.vocab_size) * config.d_model * (1 if config.tied else 2)
    assert config.padded_vocab_size == 384
    assert sum(p.numel() for p in GPT(config).parameters()) == config.parameters + padding


def test_flops_per_token_are_six_per_matrix_weight_and_attention():
    config = ModelConfig(**SMALL)
    model = GPT(config)
    matrices = sum(m.weight.numel() for m in model.blocks.modules() if hasattr(m, "in_features"))
    others = config.parameters - 32 * 48 - matrices - 300 * 48  # biases and norms, which the usual formula counts too
    assert config.train_flops_per_token(16) == 6 * (matrices + others + 300 * 48) + 12 * 3 * 48 * 16


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_heads": 5}, "model.d_model = 48 does not divide into model.n_heads = 5.*4 or 6"),
        ({"n_kv_heads": 3}, "model.n_heads = 4 is not a multiple of model.n_kv_heads = 3.*2 or 4"),
        ({"n_layers": 0}, "model.n_layers = 0 is invalid: must be at least 1"),
        ({"n_layers": 10**9}, "model.n_layers = 1000000000 is invalid: must be at most 10000"),
        ({"d_model": 10**9, "n_heads": 7}, "model.d_model = 1000000000 is invalid: must be at most 1048576"),
        ({"vocab_size": 10**4000}, r"model.vocab_size = 1000+\.\.\.0+ is invalid: must be at most 2147483648"),
        ({"n_heads": 16, "positions": "rope"}, "even head width"),
    ],
)
def test_mistakes_name_the_key_and_what_would_do(keys, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**{**SMALL, **keys})


def test_a_missing_extra_gives_the_pip_line():
    with pytest.raises(ConfigError, match=r"pip install -e '.*\[data\]'"):
        import_extra("no_such_package_of_ours", extra="data")
    assert import_extra("json", extra="data").dumps({}) == "{}"

"""Our configuration as Megatron-LM's arguments, and back."""

from typing import Any

import pytest

from gpt.convert.megatron.config import arguments_of, config_of, described_by_tensors
from gpt.convert.megatron.names import stacked_shapes
from gpt.errors import ConfigError
from gpt.model.config import RopeScaling


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"vocab_size": 515, "d_ff": 80}),
        ("gpt2", {"tied": False, "d_ff": 80}),
        ("llama", {}),
        ("llama", {"rope_scaling": RopeScaling(factor=4.0), "n_ctx": 64}),
    ],
)
def test_arguments_give_the_same_configuration(small_config: Any, family: str, settings: dict[str, Any]) -> None:
    config = small_config(family, **settings)
    arguments = arguments_of(config)
    assert config_of(arguments, where="here") == config
    del arguments["vocab_size"]
    assert config_of(arguments, where="here", tokenizer_size=500).vocab_size == 500
    assert config_of(arguments, where="here").vocab_size == config.padded_vocab_size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts": 8}, "num_experts = 8 is not supported; only no value is"),
        ({"rotary_percent": 0.5}, "rotary_percent = 0.5 is not supported; only 1 or 1.0 is"),
        ({"hidden_size": "32"}, "hidden_size = '32' must be a whole number from 1 to 1,048,576"),
        ({"num_layers": 0}, "num_layers = 0 must be a whole number from 1 to 10,000"),
        ({"norm_epsilon": True}, "norm_epsilon = True must be a finite number"),
        ({"bias_gelu_fusion": False}, "the exact GELU"),
        ({"normalization": "x" * 1000}, "normalization = 'x+\\.\\.\\.x+' is not"),
    ],
)
def test_arguments_of_other_models_are_refused(small_config: Any, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"here: .*{words}"):
        config_of({**arguments_of(small_config("gpt2")), **change}, where="here")


def test_shapes_determine_the_settings_but_not_the_heads(small_config: Any) -> None:
    """With layers stacked, and with a tensor for each layer."""
    stacked = stacked_shapes(small_config("llama"))
    numbered: dict[str, tuple[int, ...]] = {}
    for name, shape in stacked.items():
        if name.startswith("decoder.layers."):
            rest = name.removeprefix("decoder.layers.")
            numbered |= {f"decoder.layers.{i}.{rest}": shape[1:] for i in range(shape[0])}
        else:
            numbered[name] = shape
    for found in (stacked, numbered):
        assert described_by_tensors(found) == (
            'vocab_size = 512, n_layers = 2, d_model = 32, d_ff = 48, positions = "rope", norm = "rmsnorm", '
            'activation = "swiglu", bias = false, tied = false'
        )

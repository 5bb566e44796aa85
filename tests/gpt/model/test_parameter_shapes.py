"""Shapes from the configuration alone are those of the model, in its order; a million layers cost nothing."""

import dataclasses

import pytest

from gpt.errors import ConfigError
from gpt.model.config import MAX_SIZES, ModelConfig
from gpt.model.gpt import GPT
from gpt.model.parameter_shapes import check_layer_count, parameter_shapes

GPT3 = ModelConfig(vocab_size=300, n_ctx=16, n_layers=3, d_model=8, n_heads=2)
LLAMA = dataclasses.replace(
    GPT3, n_heads=4, n_kv_heads=2, positions="rope", norm="rmsnorm", activation="swiglu", bias=False, tied=False
)


@pytest.mark.parametrize("config", [GPT3, LLAMA, dataclasses.replace(GPT3, n_layers=1, bias=False)])
def test_names_order_and_shapes_are_the_models(config: ModelConfig) -> None:
    expected = [(name, tuple(parameter.shape)) for name, parameter in GPT(config).named_parameters()]
    assert list(parameter_shapes(config).items()) == expected


def test_a_file_with_fewer_tensors_than_layers_is_refused() -> None:
    check_layer_count(dataclasses.replace(GPT3, n_layers=40), 40, where="x")
    with pytest.raises(ConfigError, match="x: n_layers = 41 is invalid: the files hold only 40 tensors"):
        check_layer_count(dataclasses.replace(GPT3, n_layers=41), 40, where="x")


def test_the_largest_sizes_still_have_shapes() -> None:
    big = dataclasses.replace(GPT3, **{**MAX_SIZES, "n_heads": 1, "n_kv_heads": None, "n_layers": 3})
    assert parameter_shapes(big)["blocks.2.mlp.up.weight"] == (MAX_SIZES["d_ff"], MAX_SIZES["d_model"])

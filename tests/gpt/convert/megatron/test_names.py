"""The table of Megatron names in both directions, and models that GPTModel cannot be."""

import random
from typing import Any

import pytest
import torch

from gpt.convert.megatron.names import (
    MegatronEntry,
    check_expressible,
    from_megatron,
    join,
    object_names,
    split,
    stacked_shapes,
    table,
    to_megatron,
    unsupported_feature,
)
from gpt.convert.weights import shapes
from gpt.errors import ConfigError
from gpt.model.config import RopeScaling

CASES = [
    ("gpt2", {}),
    ("gpt2", {"tied": False, "vocab_size": 515}),
    ("llama", {}),
    ("llama", {"n_kv_heads": 1, "tied": True, "bias": True}),
]


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_both_directions_give_our_weights_bit_for_bit(
    small_config: Any, random_model: Any, family: str, settings: dict[str, Any]
) -> None:
    config = small_config(family, **settings)
    pairs = list(random_model(config).named_parameters())
    random.Random(0).shuffle(pairs)
    converted = [(entry, tensor) for entry, tensor in to_megatron(config, pairs)]
    assert {entry for entry, _ in converted} == set(table(config))
    stacked = stacked_shapes(config)
    for entry, tensor in converted:
        layers = () if entry.layer is None else (config.n_layers,)
        assert (*layers, *tensor.shape) == stacked[entry.megatron_name]
    back = dict(from_megatron(config, ((entry.title, tensor) for entry, tensor in converted)))
    assert back.keys() == shapes(config).keys()
    for name, weight in pairs:
        assert torch.equal(back[name], weight[: shapes(config)[name][0]]), name


def test_queries_keys_and_values_are_grouped_by_key_value_head(small_config: Any) -> None:
    """4 heads of 8 rows, 2 key-value heads: q0 q1 k0 v0 q2 q3 k1 v1."""
    config = small_config("llama")
    rows = [torch.arange(n).repeat_interleave(8).float()[:, None] for n in (4, 2, 2)]
    q, k, v = rows[0], rows[1] + 10, rows[2] + 20
    joined = join(config, [q, k, v])
    assert joined[::8, 0].tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    entry = MegatronEntry("x", 0, ("q", "k", "v"))
    assert all(torch.equal(a, b) for a, b in zip(split(config, entry, joined), (q, k, v), strict=True))


def test_every_layer_has_its_objects(small_config: Any) -> None:
    names = object_names(small_config("gpt2"))
    assert len(names) == len(set(names)) == 2 * 5 + 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bias": False}, "LayerNorm always has a bias"),
        ({"bias": False, "norm": "rmsnorm"}, "tanh form of GELU only with biases"),
        ({"positions": "rope", "rope_scaling": RopeScaling(8.0, original_n_ctx=64)}, "only Llama 3.1's 8192"),
    ],
)
def test_a_model_that_megatron_cannot_be_is_refused(small_config: Any, settings: dict[str, Any], words: str) -> None:
    check_expressible(small_config("gpt2"))
    with pytest.raises(ConfigError, match=words):
        check_expressible(small_config("gpt2", **settings))


def test_tensors_of_other_architectures_are_recognised() -> None:
    assert unsupported_feature("decoder.layers.mlp.experts.linear_fc1.weight") == "a mixture of experts"
    assert unsupported_feature("decoder.layers.mixer.in_proj.weight") == "Mamba layers"
    assert unsupported_feature("decoder.layers.mlp.linear_fc1.weight") is None

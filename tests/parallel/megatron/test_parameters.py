"""The table of Megatron's parameters and our weights."""

import pytest

from gpt.model.config import ModelConfig
from gpt.model.parameter_shapes import parameter_shapes

CONFIG = ModelConfig(120, 34, 2, 24, 6, n_kv_heads=2, activation="swiglu", d_ff=40)


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_every_weight_is_in_one_parameter(parts, layout):
    found = parts[0][layout]["parameters"]
    names = [name for key in found for name in unfold(key)]
    assert sorted(names) == sorted(parameter_shapes(CONFIG))


def test_shapes_are_those_of_a_tensor_rank(parts):
    """Queries, keys and values of one key-value head, of two in the model; gate and up; a whole bias after a sum."""
    found = parts[1]["tensor"]["parameters"]
    qkv = found["blocks.0.attention.q.weight+k.weight+v.weight"]
    assert qkv[:3] == [[12 + 4 + 4, 24], 0, [[24, 24], [8, 24], [8, 24]]]
    assert found["blocks.1.mlp.gate.bias+up.bias"][:3] == [[40], 0, [[40], [40]]]
    assert found["blocks.1.mlp.down.weight"][:3] == [[24, 20], 1, [[24, 40]]]
    assert found["blocks.1.mlp.down.bias"][:2] == [[24], None]
    assert found["embed.tokens.weight"][:2] == [[64, 24], 0]


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_join_and_split_are_inverse_on_a_tensor_rank(parts, layout):
    assert all(kept for rank in parts for *_, kept in rank[layout]["parameters"].values())


def unfold(key):
    """The names of the weights from the name of a parameter."""
    first, *others = key.split("+")
    return [first, *(".".join([*first.split(".")[:-2], other]) for other in others)]

"""The table of Hugging Face names, in both directions."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt.convert.hugging_face.names import from_hugging_face, table, to_hugging_face
from gpt.convert.weights import shapes
from gpt.errors import ConfigError


@pytest.mark.parametrize(
    ("family", "settings"),
    [("gpt2", {}), ("gpt2", {"tied": False}), ("llama", {}), ("llama", {"bias": True, "tied": True})],
)
def test_both_directions_of_the_table_give_our_weights_bit_for_bit(
    small_config: Any, random_model: Any, family: str, settings: dict[str, Any]
) -> None:
    config = small_config(family, **settings)
    model = random_model(config)
    converted = dict(to_hugging_face(config, shuffled(model.named_parameters())))
    weight_shapes = shapes(config)
    assert {name: tuple(t.shape) for name, t in converted.items()} == {
        entry.hf_name: entry.shape(weight_shapes) for entry in table(config)
    }
    back = dict(from_hugging_face(config, shuffled(iter(converted.items()))))
    assert back.keys() == weight_shapes.keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(back[name], parameter[: weight_shapes[name][0]]), name


def shuffled(tensors: Iterator[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    pairs = list(tensors)
    random.Random(0).shuffle(pairs)
    return pairs


def test_wrong_weights_are_refused(small_config: Any, random_model: Any) -> None:
    config = small_config("gpt2")
    pairs = list(random_model(config).named_parameters())
    wrong_shape = [(n, t[:-1] if n == "blocks.1.mlp.up.bias" else t) for n, t in pairs]
    for tensors, words in (
        (pairs[:-1], "1 tensors of the model are missing, among them 'norm.bias'"),
        ([*pairs, ("extra", torch.zeros(1))], "'extra' is unknown"),
        ([*pairs, pairs[3]], "given twice"),
        (wrong_shape, r"'blocks.1.mlp.up.bias' has shape \(127,\), but this model needs \(128,\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            list(to_hugging_face(config, tensors))

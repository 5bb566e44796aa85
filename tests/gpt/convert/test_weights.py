"""Our weights for converters: padding is cut off, and joined tensors wait for all their parts."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from gpt.convert.weights import GivenWeights, collect, is_vocabulary, joined_shape, shapes, without_padding
from gpt.errors import ConfigError


@dataclass(frozen=True)
class Group:
    names: tuple[str, ...]


def test_shapes_are_those_of_the_model_without_padding(small_config: Any, random_model: Any) -> None:
    config = small_config("gpt2", vocab_size=515)
    assert config.padded_vocab_size > 515
    found = shapes(config)
    for name, parameter in random_model(config).named_parameters():
        assert found[name][0] == (515 if is_vocabulary(name) else parameter.shape[0])
        assert found[name] == tuple(without_padding(config, name, parameter).shape)
    qkv = tuple(f"blocks.0.attention.{part}.weight" for part in "qkv")
    assert joined_shape(qkv, found) == (3 * config.d_model, config.d_model)


def test_groups_come_when_their_last_part_comes(small_config: Any, random_model: Any) -> None:
    config = small_config("gpt2")
    weights = dict(random_model(config).named_parameters())
    pair = Group(("norm.bias", "norm.weight"))
    rest = [Group((name,)) for name in weights if name not in pair.names]
    found = list(collect(config, [pair, *rest], weights.items()))
    assert [entry for entry, _ in found][-1] == pair, "the last two weights of the model"
    for entry, parts in found:
        for name, part in zip(entry.names, parts, strict=True):
            assert torch.equal(part, weights[name]), name
    with pytest.raises(ConfigError, match=r"among them 'norm\.bias'"):
        list(collect(config, [pair, *rest], list(weights.items())[:-1]))


def test_given_weights_are_named_cut_and_checked(small_config: Any, random_model: Any) -> None:
    config = small_config("llama", vocab_size=515)
    given = GivenWeights(config, random_model(config).named_parameters(), torch.bfloat16)
    assert {spec.dtype for spec in given.specs.values()} == {torch.bfloat16}
    assert {name: tuple(tensor.shape) for name, tensor in given.read()} == shapes(config)
    with pytest.raises(ConfigError, match="'x' is unknown to this model"):
        list(GivenWeights(config, [("x", torch.zeros(1))], torch.float32).read())

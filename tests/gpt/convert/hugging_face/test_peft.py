"""Names, ranks and scales of PEFT's files. tests/launch/conversion/test_peft.py has PEFT load them."""

import math

import pytest
import torch

from gpt.adapters.config import AdapterConfig, adapter_names, adapter_shapes, projections
from gpt.convert.hugging_face.peft import peft_settings, peft_shapes, to_peft, write_peft
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig

GPT2 = ModelConfig(vocab_size=64, n_ctx=16, n_layers=2, d_model=16, n_heads=4)
LLAMA = ModelConfig(
    vocab_size=64,
    n_ctx=16,
    n_layers=2,
    d_model=16,
    n_heads=4,
    n_kv_heads=2,
    positions="rope",
    norm="rmsnorm",
    activation="swiglu",
    bias=False,
)


def test_targets_are_short_if_every_layer_has_them():
    settings = peft_settings(LLAMA, AdapterConfig(rank=2, targets=("blocks.*.mlp.*", "blocks.1.attention.q")), base="b")
    assert settings["target_modules"] == ["down_proj", "gate_proj", "up_proj", "model.layers.1.self_attn.q_proj"]
    assert (settings["r"], settings["lora_alpha"], settings["rank_pattern"]) == (2, 32.0, {})
    assert settings["base_model_name_or_path"] == "b"
    assert not settings["fan_in_fan_out"]


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("targets", [("blocks.*.attention.*",), ("blocks.*.attention.q", "blocks.0.attention.v")])
def test_joined_projections_give_the_same_product(rank_stabilized, targets):
    adapter = AdapterConfig(rank=2, alpha=3.0, targets=targets, rank_stabilized=rank_stabilized)
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in adapter_shapes(GPT2, adapter).items()}
    settings = peft_settings(GPT2, adapter, base=None)
    found = dict(to_peft(GPT2, adapter, tensors))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == peft_shapes(GPT2, adapter)
    module = "transformer.h.0.attn.c_attn"
    a, b = (found[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
    rank = settings["rank_pattern"].get(module, settings["r"])
    assert a.shape[0] == b.shape[1] == rank
    alpha = settings["alpha_pattern"].get(module, settings["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if rank_stabilized else rank)
    for i, part in enumerate("qkv"):
        name = f"blocks.0.attention.{part}"
        expected = torch.zeros(projections(GPT2)[name])
        if adapter.has_target(name):
            our_a, our_b = (tensors[each] for each in adapter_names(name))
            expected = adapter.scale * our_b @ our_a
        torch.testing.assert_close(scale * (b @ a)[16 * i : 16 * (i + 1)], expected)


def test_an_adapter_that_is_not_finite_is_not_written(tmp_path):
    adapter = AdapterConfig(rank=2)
    tensors = {name: torch.zeros(shape) for name, shape in adapter_shapes(LLAMA, adapter).items()}
    name = "blocks.1.attention.q.adapter.b"
    tensors[name][0, 0] = torch.inf
    with pytest.raises(ConfigError, match=f"the checkpoint: the tensor '{name}' contains NaN or infinity"):
        write_peft(tmp_path, LLAMA, adapter, tensors, base=None)

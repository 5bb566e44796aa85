"""Logits are compared with transformers, for a whole model or an excerpt that keeps memory near the largest tensor."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt.convert.hugging_face.logits import compare_logits, part_to_compare
from gpt.convert.hugging_face.source import open_source
from gpt.model.config import ModelConfig

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")

SIZES = {"n_ctx": 131_072, "positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False}


def llama(**settings: Any) -> ModelConfig:
    return ModelConfig(**{**SIZES, **settings})


def test_of_a_large_model_as_many_layers_are_compared_as_memory_allows() -> None:
    small = llama(vocab_size=49_152, n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, d_ff=1536)
    assert part_to_compare(small, "auto") == small
    llama_1b = llama(vocab_size=128_256, n_layers=16, d_model=2048, n_heads=32, n_kv_heads=8, d_ff=8192)
    part = part_to_compare(llama_1b, "auto")
    assert part is not None
    assert (part.n_layers, part.vocab_size) == (4, 256)
    assert 4 * part.parameters < 1.2 * 2**30
    assert part_to_compare(llama_1b, "whole") == llama_1b
    assert part_to_compare(llama_1b, "none") is None
    llama_7b = llama(vocab_size=32_000, n_layers=32, d_model=4096, n_heads=32, d_ff=11_008)
    assert part_to_compare(llama_7b, "auto") == dataclasses.replace(llama_7b, n_layers=1, vocab_size=256)
    gpt3 = ModelConfig(vocab_size=50_257, n_ctx=2048, n_layers=96, d_model=12_288, n_heads=96)
    assert part_to_compare(gpt3, "auto") is None


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_excerpt_agrees_and_a_wrong_tensor_in_it_is_found(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(2)
    if kind == "llama":
        settings = transformers.LlamaConfig(
            **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 299},
            initializer_range=0.2,
        )
        transformers.LlamaForCausalLM(settings).save_pretrained(tmp_path)
    else:
        settings = transformers.GPT2Config(
            vocab_size=300, n_embd=32, n_layer=4, n_head=4, n_positions=64, eos_token_id=299, initializer_range=0.2
        )
        transformers.GPT2LMHeadModel(settings).save_pretrained(tmp_path)
    source = open_source(tmp_path)
    part = dataclasses.replace(source.config, n_layers=2, vocab_size=100)
    found = compare_logits(source.config, part, folder=tmp_path, read=source.read_weights)
    assert found.max_relative_error < 1e-5
    assert (found.layers, found.vocabulary, found.places, found.other_choices) == (2, 100, 128, 0)

    def swapped(names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in source.read_weights(names):
            yield name, tensor.flip(0) if name == "blocks.1.attention.k.weight" else tensor

    calls = iter(
        [swapped, swapped]
    )  # for our model: the ends, then the rest; the model of transformers gets the right weights

    def read(names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        return next(calls, source.read_weights)(names)

    with pytest.raises(RuntimeError, match="differ from ours by"):
        compare_logits(source.config, part, folder=tmp_path, read=read)

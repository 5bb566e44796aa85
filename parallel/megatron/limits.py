"""Refuse combinations of settings that Megatron-core cannot run as the native engine does, and name unused ones.

parallel/engines/capabilities.py has the rules for single keys.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any, NoReturn

from gpt.data.config import DataConfig
from gpt.errors import ConfigError, nearest_divisors
from gpt.model.config import ModelConfig
from gpt.training.optimizer import OptimizerConfig, decay_and_scale
from parallel.layout.config import ParallelConfig


def check_relations(recipe: Mapping[str, Any]) -> None:
    """ConfigError: the sections `model`, `parallel`, `optimizer` and `data`, where given, do not fit Megatron-core.

    Imports nothing of Megatron.
    """
    model, parallel, optimizer = (recipe.get(name) for name in ("model", "parallel", "optimizer"))
    if isinstance(data := recipe.get("data"), DataConfig):
        _check_corpora(data)
    if isinstance(model, ModelConfig):
        _check_model(model)
        if isinstance(parallel, ParallelConfig):
            _check_shares(model, parallel)
        if isinstance(optimizer, OptimizerConfig):
            _check_groups(model, optimizer)


def unused_settings(parallel: ParallelConfig) -> list[str]:
    """A line for each setting that Megatron-core cannot follow with the packages of this machine."""
    if parallel.tensor == 1 or not parallel.sequence_parallel or has_transformer_engine():
        return []
    return [
        "parallel.sequence_parallel = true has no effect: Megatron-core shares the sequence among tensor ranks only "
        "with NVIDIA's Transformer Engine, which is not installed, so each of them keeps whole activations between "
        "matrices. Install transformer-engine, or set parallel.sequence_parallel = false"
    ]


def has_transformer_engine() -> bool:
    """Return whether NVIDIA's Transformer Engine is installed. Its layers run on CUDA only."""
    return importlib.util.find_spec("transformer_engine") is not None


def _check_corpora(data: DataConfig) -> None:
    for corpus in (*data.train, *data.validation):
        if data.sampling_of(corpus) != "window":
            _refuse(
                f"sampling = '{corpus.sampling}' of corpus '{corpus.name}'",
                "Megatron's attention is causal over the whole sequence",
                "sampling = 'window'",
            )


def _check_model(model: ModelConfig) -> None:
    if model.norm == "layernorm" and not model.bias:
        _refuse(
            "model.norm = 'layernorm' with model.bias = false", "its LayerNorm always has a bias", "model.bias = true"
        )
    scaling = model.rope_scaling
    if scaling is not None and (scaling.low_frequency, scaling.high_frequency, scaling.original_n_ctx) != (1, 4, 8192):
        _refuse(
            f"model.rope_scaling with an original context of {scaling.original_n_ctx} and frequencies "
            f"{scaling.low_frequency:g} to {scaling.high_frequency:g}",
            "it has only those of Llama 3.1",
            "original_n_ctx = 8192, low_frequency = 1 and high_frequency = 4",
        )


def _check_shares(model: ModelConfig, parallel: ParallelConfig) -> None:
    """Megatron gives every tensor rank equal shares."""
    for name, number in (
        ("the key-value heads (model.n_kv_heads)", model.kv_heads),
        ("the rows of the vocabulary (model.vocab_size rounded up to model.vocab_multiple)", model.padded_vocab_size),
    ):
        if number % parallel.tensor:
            _refuse(
                f"parallel.tensor = {parallel.tensor}",
                f"it must divide {name}, {number}",
                f"parallel.tensor = {nearest_divisors(number, parallel.tensor)}",
            )


def _check_groups(model: ModelConfig, optimizer: OptimizerConfig) -> None:
    """Weights that Megatron keeps in one parameter share one learning rate and weight decay."""
    if not optimizer.groups:
        return
    from gpt.convert.megatron.names import table  # imports torch, without which a launcher reads a recipe

    for entry in table(model):
        dimensions = 2 if entry.names[0].endswith("weight") else 1  # those of several weights are matrices
        if len({decay_and_scale(name, dimensions, optimizer) for name in entry.names}) > 1:
            _refuse(
                f"optimizer.groups with different settings for {' and '.join(entry.names)}",
                "they are one parameter there",
                "patterns that match all of them or none",
            )


def _refuse(setting: str, reason: str, other: str) -> NoReturn:
    raise ConfigError(
        f"{setting} with parallel.engine = 'megatron' is invalid: {reason}. Use {other}, or parallel.engine = 'native'"
    )

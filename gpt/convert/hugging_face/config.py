"""Convert a model configuration to Hugging Face's config.json and back. No code that the file names is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpt.convert.hugging_face.names import family_of
from gpt.convert.settings import Settings, check_values, number, shown, size, switch, table
from gpt.errors import ConfigError
from gpt.files.json_files import read_json_object
from gpt.model.config import ModelConfig, RopeScaling

CONFIG = "config.json"
# Settings of an architecture for which our model supports only these values.
_GPT2_MUST: dict[str, tuple[object, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # three names for the tanh form of GELU
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_LLAMA_MUST: dict[str, tuple[object, ...]] = {"hidden_act": ("silu", "swish"), "partial_rotary_factor": (1, 1.0)}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout")
_ROPE_NAMES = {
    "factor": "factor",
    "low_freq_factor": "low_frequency",
    "high_freq_factor": "high_frequency",
    "original_max_position_embeddings": "original_n_ctx",
}


def read_settings(folder: Path) -> dict[str, Any]:
    """Read config.json. ConfigError: it is missing, invalid, or asks for remote code or quantised weights."""
    path = folder / CONFIG
    if not path.exists():
        raise ConfigError(f"{folder} holds no {CONFIG}, so it is not a Hugging Face folder")
    settings = read_json_object(path)
    for key, why in (
        ("auto_map", "asks for remote code, which is never run"),
        ("quantization_config", "describes quantised weights, which are not supported. Use the unquantised model"),
    ):
        if settings.get(key):
            raise ConfigError(f"{path} has the key {key}: it {why}")
    return settings


def model_config(folder: Path) -> ModelConfig:
    """Return our configuration of the model in a folder.

    ConfigError: gpt/model/gpt.py does not have the architecture, or this variant of it.
    """
    settings = read_settings(folder)
    where, kind = str(folder / CONFIG), settings.get("model_type")
    readers: dict[object, Callable[[str, Settings], ModelConfig]] = {"gpt2": _read_gpt2, "llama": _read_llama}
    if not isinstance(kind, str) or kind not in readers:
        names = settings.get("architectures")
        named = shown(names if isinstance(names, list) and names else "no architecture named")
        raise ConfigError(
            f"{where}: model_type = {shown(kind)} ({named}) is not supported. Use GPT-2 ('gpt2') or Llama ('llama': "
            "Llama 1 to 3, SmolLM2 and others of this form)."
        )
    return readers[kind](where, settings)


def _read_gpt2(where: str, settings: Settings) -> ModelConfig:
    check_values(settings, _GPT2_MUST, where=where)
    return ModelConfig(
        vocab_size=size(settings, "vocab_size", "vocab_size", where=where),
        n_ctx=size(settings, "n_positions", "n_ctx", where=where),
        n_layers=size(settings, "n_layer", "n_layers", where=where),
        d_model=size(settings, "n_embd", "d_model", where=where),
        n_heads=size(settings, "n_head", "n_heads", where=where),
        d_ff=None if settings.get("n_inner") is None else size(settings, "n_inner", "d_ff", where=where),
        tied=switch(settings, "tie_word_embeddings", True, where=where),
        norm_eps=number(settings, "layer_norm_epsilon", 1e-5, where=where),
        init_std=number(settings, "initializer_range", 0.02, where=where),
    )


def _read_llama(where: str, settings: Settings) -> ModelConfig:
    check_values(settings, _LLAMA_MUST, where=where)
    d_model = size(settings, "hidden_size", "d_model", where=where)
    n_heads = size(settings, "num_attention_heads", "n_heads", where=where)
    if settings.get("head_dim") is not None and size(settings, "head_dim", "d_model", where=where) * n_heads != d_model:
        raise ConfigError(
            f"{where}: head_dim = {settings['head_dim']} is not supported; only hidden_size / num_attention_heads = "
            f"{d_model} / {n_heads} is"
        )
    biases = {key: switch(settings, key, False, where=where) for key in ("attention_bias", "mlp_bias")}
    if len(set(biases.values())) > 1:
        raise ConfigError(f"{where}: {biases} is not supported; either all linear layers have a bias or none")
    key_value = "num_key_value_heads"
    kv_heads = n_heads if settings.get(key_value) is None else size(settings, key_value, "n_kv_heads", where=where)
    rope = {**table(settings, "rope_parameters", where=where), **table(settings, "rope_scaling", where=where)}
    theta = number(rope, "rope_theta", 10_000.0, where=where)
    return ModelConfig(
        vocab_size=size(settings, "vocab_size", "vocab_size", where=where),
        n_ctx=size(settings, "max_position_embeddings", "n_ctx", where=where),
        n_layers=size(settings, "num_hidden_layers", "n_layers", where=where),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=None if kv_heads == n_heads else kv_heads,
        d_ff=size(settings, "intermediate_size", "d_ff", where=where),
        positions="rope",
        norm="rmsnorm",
        activation="swiglu",
        bias=biases["mlp_bias"],
        tied=switch(settings, "tie_word_embeddings", False, where=where),
        norm_eps=number(settings, "rms_norm_eps", 1e-6, where=where),
        rope_theta=number(settings, "rope_theta", theta, where=where),
        rope_scaling=_rope_scaling(where, rope),
        init_std=number(settings, "initializer_range", 0.02, where=where),
    )


def _rope_scaling(where: str, rope: Settings) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ConfigError(f"{where}: rope_type = {shown(kind)} is not supported; 'default' and 'llama3' are")
    missing = [key for key in _ROPE_NAMES if rope.get(key) is None]
    if missing:
        raise ConfigError(f"{where}: the rope scaling lacks {missing[0]}")
    factor, low, high = (
        number(rope, key, 1.0, where=where) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    original = size(rope, "original_max_position_embeddings", "n_ctx", where=where)
    return RopeScaling(factor=factor, low_frequency=low, high_frequency=high, original_n_ctx=original)


def keeps(before: Settings, key: str) -> bool:
    """Return whether an export keeps an imported setting: another name of the same activation, or a dropout.

    A run here has no dropout, but transformers may train the exported model again.
    """
    if key in _DROPOUTS:
        return type(before.get(key)) in (int, float)
    same = {**_GPT2_MUST, **_LLAMA_MUST}
    return key in ("activation_function", "hidden_act") and before.get(key) in same[key]


def config_json(config: ModelConfig, *, dtype: torch.dtype) -> dict[str, object]:
    """Return config.json for a model, without special tokens. ConfigError: no architecture expresses the model."""
    settings = _gpt2_settings(config) if family_of(config) == "gpt2" else _llama_settings(config)
    return {
        **settings,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
        "dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }


def _gpt2_settings(config: ModelConfig) -> dict[str, object]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": config.n_ctx,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.ff_width,
        "activation_function": "gelu_new",  # the tanh form of GELU
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _llama_settings(config: ModelConfig) -> dict[str, object]:
    rope: dict[str, object] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        values = {hf_name: getattr(config.rope_scaling, name) for hf_name, name in _ROPE_NAMES.items()}
        rope = {"rope_type": "llama3", **values}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.d_model,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.d_head,
        "max_position_embeddings": config.n_ctx,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # read by transformers 4
        **({"rope_scaling": rope} if config.rope_scaling is not None else {}),
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},  # read by transformers 5
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": 0.0,
    }

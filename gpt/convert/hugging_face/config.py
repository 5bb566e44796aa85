"""Convert a model configuration to Hugging Face's config.json and back. No code that the file names is run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gpt.convert.hugging_face.names import family_of
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import read_text
from gpt.model.config import ModelConfig, RopeScaling

CONFIG = "config.json"
Settings = Mapping[str, Any]

# Settings of an architecture for which our model supports only these values.
_GPT2_MUST: dict[str, tuple[object, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # three names for the tanh form of GELU
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_LLAMA_MUST: dict[str, tuple[object, ...]] = {"hidden_act": ("silu", "swish"), "partial_rotary_factor": (1, 1.0)}
_ROPE_NAMES = {
    "factor": "factor",
    "low_freq_factor": "low_frequency",
    "high_freq_factor": "high_frequency",
    "original_max_position_embeddings": "original_n_ctx",
}


def read_settings(folder: Path) -> dict[str, Any]:
    """Read config.json. ConfigError: it is missing, invalid, or asks for remote code or quantised weights."""
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder} holds no {CONFIG}, so it is not a Hugging Face folder")
    try:
        settings = decode_json(read_text(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} is not a JSON object")
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
    path, kind = folder / CONFIG, settings.get("model_type")
    readers: dict[str, Callable[[Path, Settings], ModelConfig]] = {"gpt2": _read_gpt2, "llama": _read_llama}
    if kind not in readers:
        named = ", ".join(map(str, settings.get("architectures") or [])) or "no architecture named"
        raise ConfigError(
            f"{path}: model_type = {kind!r} ({named}) is not supported. Use GPT-2 ('gpt2') or Llama ('llama': Llama 1 "
            "to 3, SmolLM2 and others of this form)."
        )
    return readers[kind](path, settings)


def _read_gpt2(path: Path, settings: Settings) -> ModelConfig:
    _check(path, settings, _GPT2_MUST)
    return ModelConfig(
        vocab_size=_size(path, settings, "vocab_size"),
        n_ctx=_size(path, settings, "n_positions"),
        n_layers=_size(path, settings, "n_layer"),
        d_model=_size(path, settings, "n_embd"),
        n_heads=_size(path, settings, "n_head"),
        d_ff=None if settings.get("n_inner") is None else _size(path, settings, "n_inner"),
        tied=bool(settings.get("tie_word_embeddings", True)),
        norm_eps=float(settings.get("layer_norm_epsilon", 1e-5)),
        init_std=float(settings.get("initializer_range", 0.02)),
    )


def _read_llama(path: Path, settings: Settings) -> ModelConfig:
    _check(path, settings, _LLAMA_MUST)
    d_model, n_heads = _size(path, settings, "hidden_size"), _size(path, settings, "num_attention_heads")
    d_head = settings.get("head_dim") or d_model / n_heads
    if d_head * n_heads != d_model:
        raise ConfigError(
            f"{path}: head_dim = {d_head} is not supported; only hidden_size / num_attention_heads = {d_model} / "
            f"{n_heads} is"
        )
    biases = {key: bool(settings.get(key, False)) for key in ("attention_bias", "mlp_bias")}
    if len(set(biases.values())) > 1:
        raise ConfigError(f"{path}: {biases} is not supported; either all linear layers have a bias or none")
    kv_heads = settings.get("num_key_value_heads")
    rope = {**(settings.get("rope_parameters") or {}), **(settings.get("rope_scaling") or {})}
    return ModelConfig(
        vocab_size=_size(path, settings, "vocab_size"),
        n_ctx=_size(path, settings, "max_position_embeddings"),
        n_layers=_size(path, settings, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=None if kv_heads in (None, n_heads) else _size(path, settings, "num_key_value_heads"),
        d_ff=_size(path, settings, "intermediate_size"),
        positions="rope",
        norm="rmsnorm",
        activation="swiglu",
        bias=biases["mlp_bias"],
        tied=bool(settings.get("tie_word_embeddings", False)),
        norm_eps=float(settings.get("rms_norm_eps", 1e-6)),
        rope_theta=float(settings.get("rope_theta", rope.get("rope_theta", 10_000.0))),
        rope_scaling=_rope_scaling(path, rope),
        init_std=float(settings.get("initializer_range", 0.02)),
    )


def _rope_scaling(path: Path, rope: Settings) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ConfigError(f"{path}: rope_type = {kind!r} is not supported; 'default' and 'llama3' are")
    missing = [key for key in _ROPE_NAMES if key not in rope]
    if missing:
        raise ConfigError(f"{path}: the rope scaling lacks {missing[0]}")
    return RopeScaling(
        factor=float(rope["factor"]),
        low_frequency=float(rope["low_freq_factor"]),
        high_frequency=float(rope["high_freq_factor"]),
        original_n_ctx=int(rope["original_max_position_embeddings"]),
    )


def _check(path: Path, settings: Settings, must: Mapping[str, tuple[object, ...]]) -> None:
    for key, allowed in must.items():
        if settings.get(key, allowed[0]) not in allowed:
            wanted = " or ".join(repr(value) for value in allowed)
            raise ConfigError(f"{path}: {key} = {settings[key]!r} is not supported; only {wanted} is")


def _size(path: Path, settings: Settings, key: str) -> int:
    value = settings.get(key)
    if type(value) is not int or value < 1:
        raise ConfigError(f"{path}: {key} = {value!r} must be a whole number of at least 1")
    return value


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

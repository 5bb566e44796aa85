"""Convert a model configuration to Megatron-LM's arguments and back. No code that a file names is run.

Megatron-LM saves its arguments in a checkpoint's common.pt. A GPTModel that megatron-core alone saved has none. Its
tensors determine the sizes, but not the number of heads, and not the settings that do not change a shape.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt.convert.megatron.names import EMBEDDING, HEAD, LAYERS, POSITIONS
from gpt.convert.settings import check_values, number, shown, size, switch
from gpt.convert.torch_formats.pickle_as_data import PickledObject, as_dict, decode
from gpt.convert.torch_formats.torch_archive import read_archive
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig, RopeScaling

COMMON = "common.pt"
# Arguments for which our model supports only these values. An argument that a Megatron version lacks is None here.
_MUST: dict[str, tuple[object, ...]] = {
    "num_experts": (None,),
    "multi_latent_attention": (None, False),
    "position_embedding_type": (None, "learned_absolute", "rope"),
    "rotary_percent": (None, 1, 1.0),
    "rotary_interleaved": (None, False),
    "rotary_seq_len_interpolation_factor": (None, 1),
    "squared_relu": (None, False),
    "quick_geglu": (None, False),
    "glu_linear_offset": (None, 0, 0.0),
    "activation_func_clamp_value": (None,),
    "add_qkv_bias": (None, False),
    "normalization": (None, "LayerNorm", "RMSNorm"),
    "apply_layernorm_1p": (None, False),
    "qk_layernorm": (None, False),
    "qk_l2_norm": (None, False),
    "apply_residual_connection_post_layernorm": (None, False),
    "attention_output_gate": (None, False),
    "window_size": (None,),
    "softmax_type": (None, "vanilla"),
    "softmax_scale": (None,),
    "mtp_num_layers": (None, 0),
    "no_rope_freq": (None,),
    "heterogeneous_layers_config_path": (None,),
}


def read_arguments(folder: Path) -> dict[str, Any] | None:
    """Return the arguments in common.pt that are text, numbers, booleans or None; None if it has no arguments."""
    path = folder / COMMON
    if not path.is_file():
        return None
    root = decode(read_archive(path).pickle, where=str(path)).root
    arguments = as_dict(root, where=str(path)).get("args")
    if not isinstance(arguments, PickledObject) or arguments.state is None:
        return None
    fields = as_dict(arguments, where=str(path))
    return {key: value for key, value in fields.items() if value is None or isinstance(value, str | int | float)}


def config_of(arguments: Mapping[str, Any], *, where: str, tokenizer_size: int | None = None) -> ModelConfig:
    """Return the model that the arguments describe. ConfigError: gpt/model/gpt.py cannot build it.

    `tokenizer_size`: the vocabulary size if it is not an argument; Megatron-LM takes it from the tokenizer then.
    """
    check_values(arguments, _MUST, where=where)
    bias = switch(arguments, "add_bias_linear", True, where=where)
    swiglu = switch(arguments, "swiglu", False, where=where)
    if not swiglu and not (bias and switch(arguments, "bias_gelu_fusion", True, where=where)):
        raise ConfigError(
            f"{where}: without bias_gelu_fusion Megatron computes the exact GELU, but ours is the tanh form: the model "
            "would give other logits"
        )
    heads = size(arguments, "num_attention_heads", "n_heads", where=where)
    width = size(arguments, "hidden_size", "d_model", where=where)
    if arguments.get("kv_channels") not in (None, width / heads):
        raise ConfigError(
            f"{where}: kv_channels = {shown(arguments['kv_channels'])} is not supported; only hidden_size / "
            "num_attention_heads is"
        )
    rope = arguments.get("position_embedding_type") == "rope" or switch(
        arguments, "use_rotary_position_embeddings", False, where=where
    )
    groups = (
        size(arguments, "num_query_groups", "n_kv_heads", where=where)
        if switch(arguments, "group_query_attention", False, where=where)
        else heads
    )
    return ModelConfig(
        vocab_size=_vocabulary(arguments, where, tokenizer_size),
        n_ctx=size(arguments, "max_position_embeddings", "n_ctx", where=where),
        n_layers=size(arguments, "num_layers", "n_layers", where=where),
        d_model=width,
        n_heads=heads,
        n_kv_heads=None if groups == heads else groups,
        d_ff=size(arguments, "ffn_hidden_size", "d_ff", where=where),
        positions="rope" if rope else "learned",
        norm="rmsnorm" if arguments.get("normalization") == "RMSNorm" else "layernorm",
        activation="swiglu" if swiglu else "gelu",
        bias=bias,
        tied=not switch(arguments, "untie_embeddings_and_output_weights", False, where=where),
        norm_eps=number(
            arguments, "norm_epsilon" if "norm_epsilon" in arguments else "layernorm_epsilon", 1e-5, where=where
        ),
        rope_theta=number(arguments, "rotary_base", 10_000.0, where=where),
        rope_scaling=_rope_scaling(arguments, where) if rope else None,
        init_std=number(arguments, "init_method_std", 0.02, where=where),
    )


def _vocabulary(arguments: Mapping[str, Any], where: str, tokenizer_size: int | None) -> int:
    if arguments.get("vocab_size"):
        return size(arguments, "vocab_size", "vocab_size", where=where)
    padded = size(arguments, "padded_vocab_size", "vocab_size", where=where)
    return padded if tokenizer_size is None else min(tokenizer_size, padded)


def _rope_scaling(arguments: Mapping[str, Any], where: str) -> RopeScaling | None:
    if not switch(arguments, "use_rope_scaling", False, where=where):
        return None
    return RopeScaling(factor=number(arguments, "rope_scaling_factor", 8.0, where=where))


def arguments_of(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments with which Megatron-LM builds this model; its --use-checkpoint-args reads them."""
    rope, groups = config.positions == "rope", config.kv_heads != config.n_heads
    theta = config.rope_theta
    return {
        "num_layers": config.n_layers,
        "hidden_size": config.d_model,
        "ffn_hidden_size": config.ff_width,
        "num_attention_heads": config.n_heads,
        "group_query_attention": groups,
        "num_query_groups": config.kv_heads if groups else 1,
        "kv_channels": config.d_head,
        "seq_length": config.n_ctx,
        "max_position_embeddings": config.n_ctx,
        "position_embedding_type": "rope" if rope else "learned_absolute",
        "add_position_embedding": True,
        "use_rotary_position_embeddings": rope,
        "rotary_base": int(theta) if theta == int(theta) else theta,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rope_scaling": config.rope_scaling is not None,
        "rope_scaling_factor": 8.0 if config.rope_scaling is None else config.rope_scaling.factor,
        "add_bias_linear": config.bias,
        "add_qkv_bias": False,
        "swiglu": config.activation == "swiglu",
        "squared_relu": False,
        "bias_gelu_fusion": config.activation == "gelu",
        "untie_embeddings_and_output_weights": not config.tied,
        "normalization": "RMSNorm" if config.norm == "rmsnorm" else "LayerNorm",
        "apply_layernorm_1p": False,
        "norm_epsilon": config.norm_eps,
        "apply_query_key_layer_scaling": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "init_method_std": config.init_std,
        "num_experts": None,
        "vocab_size": config.vocab_size,
        "make_vocab_size_divisible_by": config.vocab_multiple,
        "padded_vocab_size": config.padded_vocab_size,
        "ckpt_format": "torch_dist",
    }


def described_by_tensors(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the settings that the shapes of a checkpoint determine, in TOML; layers may be stacked or numbered."""
    shapes = {name: shape for name, shape in shapes.items() if shape}
    last = {name.removeprefix(LAYERS).lstrip("0123456789."): shape for name, shape in shapes.items()}
    stacked = [shape[0] for name, shape in shapes.items() if name == f"{LAYERS}mlp.linear_fc2.weight"]
    numbered = {name.removeprefix(LAYERS).partition(".")[0] for name in shapes if name.startswith(LAYERS)}
    embedding, up, down = (
        found.get(name, (0, 0))
        for found, name in ((shapes, EMBEDDING), (last, "mlp.linear_fc1.weight"), (last, "mlp.linear_fc2.weight"))
    )
    settings = {
        "vocab_size": embedding[0],
        "n_layers": stacked[0] if stacked else len(numbered),
        "d_model": embedding[-1],
        "d_ff": down[-1],
        "positions": "learned" if POSITIONS in shapes else "rope",
        "norm": "layernorm" if "decoder.final_layernorm.bias" in shapes else "rmsnorm",
        "activation": "gelu" if up[-2:-1] == down[-1:] else "swiglu",
        "bias": "mlp.linear_fc2.bias" in last,
        "tied": HEAD not in shapes,
    }
    if POSITIONS in shapes:
        settings["n_ctx"] = shapes[POSITIONS][0]
    words = {True: "true", False: "false"}
    return ", ".join(
        f'{key} = "{value}"'
        if isinstance(value, str)
        else f"{key} = {words[value] if isinstance(value, bool) else value}"
        for key, value in settings.items()
    )

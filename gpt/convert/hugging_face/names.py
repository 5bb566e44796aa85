"""The mapping between our weights and the tensors of a Hugging Face model: one table, read in both directions.

`transformers` has two families for what gpt/model/gpt.py can build: GPT-2 (learned positions, LayerNorm, GELU, bias)
and Llama (rotary positions, RMSNorm, SwiGLU).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gpt.convert.weights import check_complete, check_shape, collect, joined_shape, shapes, take
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig

Family = Literal["gpt2", "llama"]

# A family can express a model if these settings have these values. Other settings are free.
_NEEDS: dict[Family, dict[str, object]] = {
    "gpt2": {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True},
    "llama": {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu"},
}


@dataclass(frozen=True)
class HuggingFaceEntry:
    """A Hugging Face tensor: our weights `names`, joined along the first dimension.

    `transposed`: GPT-2 stores its matrices as (in, out).
    """

    hf_name: str
    names: tuple[str, ...]
    transposed: bool = False

    def shape(self, weight_shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of the Hugging Face tensor; `weight_shapes` as weights.shapes returns it."""
        shape = joined_shape(self.names, weight_shapes)
        return shape[::-1] if self.transposed else shape

    def join(self, parts: list[Tensor]) -> Tensor:
        """Make the Hugging Face tensor of our weights."""
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        return joined.T if self.transposed else joined

    def split(self, tensor: Tensor, weight_shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
        """Take our (name, weight) pairs out of the Hugging Face tensor, the inverse of `join`; views, not copies."""
        rows = [weight_shapes[name][0] for name in self.names]
        yield from zip(self.names, torch.split(tensor.T if self.transposed else tensor, rows), strict=True)


def family_of(config: ModelConfig) -> Family:
    """Return the family that expresses this model exactly. ConfigError: none does."""
    differences: dict[Family, list[str]] = {
        family: [f"model.{key} = {_toml(getattr(config, key))}" for key in needs if getattr(config, key) != needs[key]]
        for family, needs in _NEEDS.items()
    }
    if config.kv_heads != config.n_heads:
        differences["gpt2"].append(f"model.n_kv_heads = {config.kv_heads} below n_heads = {config.n_heads}")
    for family, found in differences.items():
        if not found:
            return family
    family = min(differences, key=lambda name: len(differences[name]))
    title = {"gpt2": "GPT-2", "llama": "Llama"}[family]
    rule = ", ".join(f"{key} = {_toml(value)}" for key, value in _NEEDS[family].items())
    raise ConfigError(
        f"no Hugging Face architecture here expresses this model: {title}, the nearest, has no "
        f"{' and no '.join(differences[family])}. It needs {rule}" + (" and no n_kv_heads" if family == "gpt2" else "")
    )


def table(config: ModelConfig) -> list[HuggingFaceEntry]:
    """Return every tensor of the Hugging Face model. A tied head has no tensor of its own, in both formats."""
    return _gpt2(config) if family_of(config) == "gpt2" else _llama(config)


def to_hugging_face(config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Convert our (name, weight) pairs, in any order, to Hugging Face pairs. Vocabulary padding is cut off.

    Memory: only the weights of joined tensors that are still incomplete. ConfigError: a weight is missing, unknown, or
    has another shape.
    """
    for entry, parts in collect(config, table(config), tensors):
        joined = entry.join(parts)
        del parts
        yield entry.hf_name, joined
        del joined  # this frame would keep it in memory while the next one is read


def from_hugging_face(config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Convert Hugging Face pairs, in any order, to ours without vocabulary padding. Errors as `to_hugging_face`."""
    weight_shapes = shapes(config)
    entries = {entry.hf_name: entry for entry in table(config)}
    missing = set(entries)
    for name, tensor in tensors:
        take(name, missing, entries)
        check_shape(name, tensor, entries[name].shape(weight_shapes))
        yield from entries[name].split(tensor, weight_shapes)
        del tensor
    check_complete(missing)


def _gpt2(config: ModelConfig) -> list[HuggingFaceEntry]:
    entries = [
        HuggingFaceEntry("transformer.wte.weight", ("embed.tokens.weight",)),
        HuggingFaceEntry("transformer.wpe.weight", ("embed.positions.weight",)),
    ]
    for i in range(config.n_layers):
        block, hf_block = f"blocks.{i}", f"transformer.h.{i}"
        for kind in ("weight", "bias"):
            transposed = kind == "weight"
            qkv = tuple(f"{block}.attention.{part}.{kind}" for part in "qkv")
            entries += [
                HuggingFaceEntry(f"{hf_block}.ln_1.{kind}", (f"{block}.attention_norm.{kind}",)),
                HuggingFaceEntry(f"{hf_block}.attn.c_attn.{kind}", qkv, transposed),
                HuggingFaceEntry(f"{hf_block}.attn.c_proj.{kind}", (f"{block}.attention.out.{kind}",), transposed),
                HuggingFaceEntry(f"{hf_block}.ln_2.{kind}", (f"{block}.mlp_norm.{kind}",)),
                HuggingFaceEntry(f"{hf_block}.mlp.c_fc.{kind}", (f"{block}.mlp.up.{kind}",), transposed),
                HuggingFaceEntry(f"{hf_block}.mlp.c_proj.{kind}", (f"{block}.mlp.down.{kind}",), transposed),
            ]
    entries += [HuggingFaceEntry(f"transformer.ln_f.{kind}", (f"norm.{kind}",)) for kind in ("weight", "bias")]
    return entries + _head(config)


def _llama(config: ModelConfig) -> list[HuggingFaceEntry]:
    entries = [HuggingFaceEntry("model.embed_tokens.weight", ("embed.tokens.weight",))]
    linear = {
        "self_attn.q_proj": "attention.q",
        "self_attn.k_proj": "attention.k",
        "self_attn.v_proj": "attention.v",
        "self_attn.o_proj": "attention.out",
        "mlp.gate_proj": "mlp.gate",
        "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.down",
    }
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
    for i in range(config.n_layers):
        for hf_module, module in (linear | norms).items():
            kinds = ("weight", "bias") if config.bias and hf_module in linear else ("weight",)
            entries += [
                HuggingFaceEntry(f"model.layers.{i}.{hf_module}.{kind}", (f"blocks.{i}.{module}.{kind}",))
                for kind in kinds
            ]
    return [*entries, HuggingFaceEntry("model.norm.weight", ("norm.weight",)), *_head(config)]


def _head(config: ModelConfig) -> list[HuggingFaceEntry]:
    return [] if config.tied else [HuggingFaceEntry("lm_head.weight", ("head.weight",))]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)

"""Which of our tensors make which tensor of a Hugging Face model, in one table read in both directions; moves no bytes.

GPT-2 (learned positions, LayerNorm, GELU, bias) and Llama (rotary positions, RMSNorm, SwiGLU) are the two families
that `transformers` has for what gpt/model/gpt.py can build.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT

Family = Literal["gpt2", "llama"]

# For a family to express a model, these settings must have these values; the rest is free.
_NEEDS: dict[Family, dict[str, object]] = {
    "gpt2": {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True},
    "llama": {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu"},
}


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs: ours joined along the first dimension, then transposed where GPT-2 keeps (in, out)."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


def family_of(config: ModelConfig) -> Family:
    """The architecture that expresses this model exactly; ConfigError names what none does."""
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
        f"{' and no '.join(differences[family])}; it needs {rule}" + (" and no n_kv_heads" if family == "gpt2" else "")
    )


def table(config: ModelConfig) -> list[Entry]:
    """Every tensor of the Hugging Face model. A tied head is no tensor of its own, there as here."""
    return _gpt2(config) if family_of(config) == "gpt2" else _llama(config)


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameters and their shapes without vocabulary padding."""
    with torch.device("meta"):
        model = GPT(config)
    return {
        name: (config.vocab_size, *parameter.shape[1:]) if is_vocabulary(name) else tuple(parameter.shape)
        for name, parameter in model.named_parameters()
    }


def their_shape(entry: Entry, ours: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of one of their tensors, from `shapes`."""
    rows = sum(ours[name][0] for name in entry.ours)
    shape = (rows, *ours[entry.ours[0]][1:])
    return shape[::-1] if entry.transposed else shape


def to_theirs(config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Their (name, tensor) for each of ours, in any order; holds only the parts of joined tensors that still lack one.

    Vocabulary padding is cut off. ConfigError: a tensor that is missing, unknown, or of another shape.
    """
    expected = shapes(config)
    entries = {name: entry for entry in table(config) for name in entry.ours}
    waiting: dict[str, Tensor] = {}
    missing = set(entries)
    for name, tensor in tensors:
        if name not in missing:
            raise ConfigError(f"the tensor '{name}' is {'given twice' if name in entries else 'unknown to this model'}")
        waiting[name] = check_shape(name, _cut(name, tensor, config), expected[name])
        del tensor  # or the next one would be read while this one is still held
        missing.remove(name)
        entry = entries[name]
        if all(part in waiting for part in entry.ours):
            yield entry.theirs, _joined(entry, waiting)
    if missing:
        raise ConfigError(f"{len(missing)} tensors of the model are missing, among them '{min(missing)}'")


def _joined(entry: Entry, waiting: dict[str, Tensor]) -> Tensor:
    parts = [waiting.pop(part) for part in entry.ours]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined.T if entry.transposed else joined


def to_ours(config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Our (name, tensor) for each of theirs, in any order, without vocabulary padding; errors as `to_theirs`."""
    expected = shapes(config)
    entries = {entry.theirs: entry for entry in table(config)}
    missing = set(entries)
    for name, tensor in tensors:
        if name not in missing:
            raise ConfigError(f"the tensor '{name}' is {'given twice' if name in entries else 'unknown to this model'}")
        missing.remove(name)
        entry = entries[name]
        check_shape(name, tensor, their_shape(entry, expected))
        rows = [expected[part][0] for part in entry.ours]
        yield from zip(entry.ours, torch.split(tensor.T if entry.transposed else tensor, rows), strict=True)
        del tensor
    if missing:
        raise ConfigError(f"{len(missing)} tensors of the model are missing, among them '{min(missing)}'")


def is_vocabulary(name: str) -> bool:
    """Whether the first dimension of our tensor counts tokens, padding included."""
    return name in ("embed.tokens.weight", "head.weight")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> Tensor:
    """The tensor, or ConfigError when its shape is another than this model's."""
    if tuple(tensor.shape) != expected:
        raise ConfigError(f"the tensor '{name}' has shape {tuple(tensor.shape)}, but this model's has {expected}")
    return tensor


def _cut(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    if is_vocabulary(name) and tensor.size(0) == config.padded_vocab_size:
        return tensor[: config.vocab_size]
    return tensor


def _gpt2(config: ModelConfig) -> list[Entry]:
    entries = [
        Entry("transformer.wte.weight", ("embed.tokens.weight",)),
        Entry("transformer.wpe.weight", ("embed.positions.weight",)),
    ]
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        for kind in ("weight", "bias"):
            turned = kind == "weight"
            qkv = tuple(f"{ours}.attention.{part}.{kind}" for part in "qkv")
            entries += [
                Entry(f"{theirs}.ln_1.{kind}", (f"{ours}.attention_norm.{kind}",)),
                Entry(f"{theirs}.attn.c_attn.{kind}", qkv, turned),
                Entry(f"{theirs}.attn.c_proj.{kind}", (f"{ours}.attention.out.{kind}",), turned),
                Entry(f"{theirs}.ln_2.{kind}", (f"{ours}.mlp_norm.{kind}",)),
                Entry(f"{theirs}.mlp.c_fc.{kind}", (f"{ours}.mlp.up.{kind}",), turned),
                Entry(f"{theirs}.mlp.c_proj.{kind}", (f"{ours}.mlp.down.{kind}",), turned),
            ]
    entries += [Entry(f"transformer.ln_f.{kind}", (f"norm.{kind}",)) for kind in ("weight", "bias")]
    return entries + _head(config)


def _llama(config: ModelConfig) -> list[Entry]:
    entries = [Entry("model.embed_tokens.weight", ("embed.tokens.weight",))]
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
        for theirs, ours in (linear | norms).items():
            kinds = ("weight", "bias") if config.bias and theirs in linear else ("weight",)
            entries += [Entry(f"model.layers.{i}.{theirs}.{kind}", (f"blocks.{i}.{ours}.{kind}",)) for kind in kinds]
    return [*entries, Entry("model.norm.weight", ("norm.weight",)), *_head(config)]


def _head(config: ModelConfig) -> list[Entry]:
    return [] if config.tied else [Entry("lm_head.weight", ("head.weight",))]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)

"""The mapping between our weights and the tensors of Megatron-core's GPTModel: one table, read in both directions.

Megatron stacks the layers of one kind, (n_layers, rows, d). Queries, keys and values share one tensor, grouped by
key-value head: the queries of the head, its key, its value. SwiGLU's gate and up share one tensor too, gate first.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.convert.weights import collect, joined_shape, shapes
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig

LAYERS = "decoder.layers."
EMBEDDING, POSITIONS, HEAD = (
    "embedding.word_embeddings.weight",
    "embedding.position_embeddings.weight",
    "output_layer.weight",
)
# A norm is part of the linear layer that follows it (Transformer Engine's fused modules, and the local modules are
# saved under the same names), or it is a module of its own.
NORMS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
_LINEAR = {
    "self_attention.linear_proj": ("attention.out",),
    "self_attention.linear_qkv": ("attention.q", "attention.k", "attention.v"),
    "mlp.linear_fc2": ("mlp.down",),
}
_LAYER_NORM = {NORMS["input_layernorm."]: "attention_norm", NORMS["pre_mlp_layernorm."]: "mlp_norm"}
# Modules that also save an empty object. Megatron requires it when it loads.
_WITH_OBJECTS = (
    *("self_attention.core_attention", "self_attention.linear_proj", "self_attention.linear_qkv"),
    *("mlp.linear_fc1", "mlp.linear_fc2"),
)
_UNSUPPORTED = {
    r"\.(experts|router|shared_experts)\.": "a mixture of experts",
    r"linear_(q_down|q_up|kv_down|kv_up)_proj|(kv|q)_a_": "multi-head latent attention",
    r"[qk]_layernorm\.": "norms of queries and keys",
    r"(^|\.)mtp\.": "multi-token prediction",
    r"\.mixer\.|mamba": "Mamba layers",
    r"^(encoder|vision|image|pooler|lm_head|binary_head)|cross_attention|tokentype": "another model than GPT",
    r"softmax_offset": "attention with a learned offset",
}


@dataclass(frozen=True)
class MegatronEntry:
    """A Megatron tensor, or one layer of a stacked one: our weights `names`, joined."""

    megatron_name: str
    layer: int | None
    names: tuple[str, ...]

    @property
    def title(self) -> str:
        """A name that is different for every layer."""
        return self.megatron_name if self.layer is None else f"{self.megatron_name}, layer {self.layer}"


def check_expressible(config: ModelConfig) -> None:
    """Check that Megatron's GPTModel can be this model. ConfigError: it cannot."""
    scaling = config.rope_scaling
    found = None
    if config.norm == "layernorm" and not config.bias:
        found = "model.norm = 'layernorm' with model.bias = false: Megatron's LayerNorm always has a bias"
    elif config.activation == "gelu" and not config.bias:
        found = "model.activation = 'gelu' with model.bias = false: Megatron has our tanh form of GELU only with biases"
    elif scaling is not None and (
        (scaling.low_frequency, scaling.high_frequency, scaling.original_n_ctx) != (1, 4, 8192)
    ):
        found = (
            f"model.rope_scaling with an original context of {scaling.original_n_ctx} and frequencies "
            f"{scaling.low_frequency:g} to {scaling.high_frequency:g}: Megatron supports only Llama 3.1's 8192, 1 to 4"
        )
    if found is not None:
        raise ConfigError(f"Megatron's GPTModel cannot be this model: {found}")


def unsupported_feature(name: str) -> str | None:
    """Return the unsupported feature that a tensor of this name belongs to, or None if we know of none."""
    return next((kind for pattern, kind in _UNSUPPORTED.items() if re.search(pattern, name)), None)


def table(config: ModelConfig) -> list[MegatronEntry]:
    """Return every tensor of the model, layer by layer. A tied head has no tensor of its own, in both formats."""
    entries = [MegatronEntry(EMBEDDING, None, ("embed.tokens.weight",))]
    if config.positions == "learned":
        entries.append(MegatronEntry(POSITIONS, None, ("embed.positions.weight",)))
    up = ("mlp.gate", "mlp.up") if config.activation == "swiglu" else ("mlp.up",)
    linear_kinds = ("weight", "bias") if config.bias else ("weight",)
    norm_kinds = ("weight", "bias") if config.norm == "layernorm" and config.bias else ("weight",)
    for i in range(config.n_layers):
        for megatron_module, modules in {**_LINEAR, "mlp.linear_fc1": up}.items():
            for kind in linear_kinds:
                names = tuple(f"blocks.{i}.{module}.{kind}" for module in modules)
                entries.append(MegatronEntry(f"{LAYERS}{megatron_module}.{kind}", i, names))
        for megatron_module, norm in _LAYER_NORM.items():
            entries += [
                MegatronEntry(f"{LAYERS}{megatron_module}{kind}", i, (f"blocks.{i}.{norm}.{kind}",))
                for kind in norm_kinds
            ]
    entries += [MegatronEntry(f"decoder.final_layernorm.{kind}", None, (f"norm.{kind}",)) for kind in norm_kinds]
    return entries if config.tied else [*entries, MegatronEntry(HEAD, None, ("head.weight",))]


def object_names(config: ModelConfig) -> list[str]:
    """Return the names of the empty objects that Megatron expects."""
    names = [
        f"{LAYERS}{module}._extra_state/shard_{i}_{config.n_layers}"
        for module in _WITH_OBJECTS
        for i in range(config.n_layers)
    ]
    return [*names, "decoder.final_layernorm._extra_state/shard_0_1"]


def stacked_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every Megatron tensor, layers stacked, without vocabulary padding."""
    weight_shapes, found = shapes(config), {}
    for entry in table(config):
        shape = joined_shape(entry.names, weight_shapes)
        found[entry.megatron_name] = shape if entry.layer is None else (config.n_layers, *shape)
    return found


def join(config: ModelConfig, parts: list[Tensor]) -> Tensor:
    """Join the weights of one entry: queries, keys and values by group; gate before up; a single weight as it is.

    The parts may be those of one tensor rank, which holds whole groups.
    """
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return torch.cat(parts)
    heads = parts[1].size(0) // config.d_head
    groups = [part.reshape(heads, -1, *part.shape[1:]) for part in parts]  # (k, rows, d)
    return torch.cat(groups, dim=1).reshape(-1, *parts[0].shape[1:])


def split(config: ModelConfig, entry: MegatronEntry, tensor: Tensor) -> list[Tensor]:
    """Split an entry's tensor into our weights, the inverse of `join`."""
    if len(entry.names) == 1:
        return [tensor]
    if len(entry.names) == 2:
        return list(tensor.chunk(2))
    queries = config.n_heads // config.kv_heads * config.d_head
    rows = [queries, config.d_head, config.d_head]
    groups = tensor.reshape(-1, sum(rows), *tensor.shape[1:])  # (k, rows, d)
    return [part.reshape(-1, *tensor.shape[1:]) for part in torch.split(groups, rows, dim=1)]


def to_megatron(config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[MegatronEntry, Tensor]]:
    """Convert our (name, weight) pairs, in any order, to Megatron entries and tensors, without vocabulary padding.

    Memory: only the weights of joined tensors that are still incomplete. ConfigError: a weight is missing, unknown, or
    has another shape.
    """
    for entry, parts in collect(config, table(config), tensors):
        joined = join(config, parts)
        del parts
        yield entry, joined
        del joined  # this frame would keep it in memory while the next one is read


def from_megatron(config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Convert Megatron tensors, by the titles of their entries, to our (name, weight) pairs."""
    entries = {entry.title: entry for entry in table(config)}
    for title, tensor in tensors:
        yield from zip(entries[title].names, split(config, entries[title], tensor), strict=True)
        del tensor

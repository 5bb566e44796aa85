"""Which of our tensors make which of Megatron-core's GPTModel, in one table read in both directions; moves no bytes.

Megatron keeps the layers of one kind stacked, (n_layers, rows, d); queries, keys and values lie in one tensor, group by
group (the queries of a key-value head, its key, its value); SwiGLU's gate and up too, gate first.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.convert.hugging_face.names import check_shape, is_vocabulary, shapes
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig

LAYERS = "decoder.layers."
EMBEDDING, POSITIONS, HEAD = (
    "embedding.word_embeddings.weight",
    "embedding.position_embeddings.weight",
    "output_layer.weight",
)
# Norms lie in the layer after them (Transformer Engine's fused modules; the local ones are saved under the same names),
# or have names of their own.
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
# Modules that save an object without content beside their weights, which Megatron asks for when it loads.
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
class Piece:
    """One tensor of theirs, or one layer of a stacked one, and ours in it."""

    theirs: str
    layer: int | None
    ours: tuple[str, ...]

    @property
    def title(self) -> str:
        return self.theirs if self.layer is None else f"{self.theirs}, layer {self.layer}"


def check_expressible(config: ModelConfig) -> None:
    """ConfigError: Megatron's GPTModel cannot be such a model."""
    scaling = config.rope_scaling
    found = None
    if config.norm == "layernorm" and not config.bias:
        found = "model.norm = 'layernorm' with model.bias = false: its LayerNorm always has a bias"
    elif config.activation == "gelu" and not config.bias:
        found = "model.activation = 'gelu' with model.bias = false: it has our form of GELU, by tanh, only with biases"
    elif scaling is not None and (scaling.low_frequency, scaling.high_frequency, scaling.original_n_ctx) != (
        1,
        4,
        8192,
    ):
        found = (
            f"model.rope_scaling of a context of {scaling.original_n_ctx} and frequencies {scaling.low_frequency:g} to "
            f"{scaling.high_frequency:g}: it has Llama 3.1's 8192, 1 to 4 alone"
        )
    if found is not None:
        raise ConfigError(f"Megatron's GPTModel cannot be this model: {found}")


def what_is_not_here(name: str) -> str | None:
    """What a tensor of this name tells of that no model here has; None: nothing is known of it."""
    return next((kind for pattern, kind in _UNSUPPORTED.items() if re.search(pattern, name)), None)


def table(config: ModelConfig) -> list[Piece]:
    """Every tensor of the model, a layer at a time. A tied head is no tensor of its own, there as here."""
    pieces = [Piece(EMBEDDING, None, ("embed.tokens.weight",))]
    if config.positions == "learned":
        pieces.append(Piece(POSITIONS, None, ("embed.positions.weight",)))
    up = ("mlp.gate", "mlp.up") if config.activation == "swiglu" else ("mlp.up",)
    linear_kinds = ("weight", "bias") if config.bias else ("weight",)
    norm_kinds = ("weight", "bias") if config.norm == "layernorm" and config.bias else ("weight",)
    for i in range(config.n_layers):
        for theirs, ours in {**_LINEAR, "mlp.linear_fc1": up}.items():
            for kind in linear_kinds:
                names = tuple(f"blocks.{i}.{name}.{kind}" for name in ours)
                pieces.append(Piece(f"{LAYERS}{theirs}.{kind}", i, names))
        for theirs, norm in _LAYER_NORM.items():
            pieces += [Piece(f"{LAYERS}{theirs}{kind}", i, (f"blocks.{i}.{norm}.{kind}",)) for kind in norm_kinds]
    pieces += [Piece(f"decoder.final_layernorm.{kind}", None, (f"norm.{kind}",)) for kind in norm_kinds]
    return pieces if config.tied else [*pieces, Piece(HEAD, None, ("head.weight",))]


def objects(config: ModelConfig) -> list[str]:
    """The names of the objects without content."""
    names = [
        f"{LAYERS}{module}._extra_state/shard_{i}_{config.n_layers}"
        for module in _WITH_OBJECTS
        for i in range(config.n_layers)
    ]
    return [*names, "decoder.final_layernorm._extra_state/shard_0_1"]


def piece_shape(piece: Piece, ours: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a piece, without the dimension of layers and without padding; `ours`: from names.shapes."""
    return (sum(ours[name][0] for name in piece.ours), *ours[piece.ours[0]][1:])


def stacked_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of theirs, layers stacked."""
    ours, found = shapes(config), {}
    for piece in table(config):
        shape = piece_shape(piece, ours)
        found[piece.theirs] = shape if piece.layer is None else (config.n_layers, *shape)
    return found


def join(config: ModelConfig, parts: list[Tensor]) -> Tensor:
    """Their piece out of ours: queries, keys and values by group; gate before up; one alone as it is."""
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return torch.cat(parts)
    groups = [part.reshape(config.kv_heads, -1, *part.shape[1:]) for part in parts]  # (k, rows, d)
    return torch.cat(groups, dim=1).reshape(-1, *parts[0].shape[1:])


def split(config: ModelConfig, piece: Piece, tensor: Tensor) -> list[Tensor]:
    """Ours out of their piece: the inverse of `join`."""
    if len(piece.ours) == 1:
        return [tensor]
    if len(piece.ours) == 2:
        return list(tensor.chunk(2))
    groups = tensor.reshape(config.kv_heads, -1, *tensor.shape[1:])  # (k, rows, d)
    queries = config.n_heads // config.kv_heads * config.d_head
    rows = [queries, config.d_head, config.d_head]
    return [part.reshape(-1, *tensor.shape[1:]) for part in torch.split(groups, rows, dim=1)]


def to_megatron(config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[Piece, Tensor]]:
    """Their piece and tensor for each of ours, in any order; holds only parts of joined tensors that still lack one.

    Vocabulary padding is cut off. ConfigError: a tensor that is missing, unknown, or of another shape.
    """
    expected = shapes(config)
    pieces = {name: piece for piece in table(config) for name in piece.ours}
    waiting: dict[str, Tensor] = {}
    missing = set(pieces)
    for name, tensor in tensors:
        if name not in missing:
            raise ConfigError(f"the tensor '{name}' is {'given twice' if name in pieces else 'unknown to this model'}")
        missing.remove(name)
        cut = is_vocabulary(name) and tensor.size(0) == config.padded_vocab_size
        waiting[name] = check_shape(name, tensor[: config.vocab_size] if cut else tensor, expected[name])
        del tensor  # or the next one would be read while this one is still held
        piece = pieces[name]
        if all(part in waiting for part in piece.ours):
            yield piece, join(config, [waiting.pop(part) for part in piece.ours])
    if missing:
        raise ConfigError(f"{len(missing)} tensors of the model are missing, among them '{min(missing)}'")

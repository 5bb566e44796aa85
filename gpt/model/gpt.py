"""A dense decoder transformer for one device. parallel/ wraps it from outside.

GPT-3 (arXiv 2005.14165, section 2.1): learned positions, LayerNorm before each sub-layer, GELU, tied embeddings.
By configuration also RMSNorm (1910.07467), rotary positions (2104.09864), SwiGLU (2002.05202) and grouped-query
attention (2305.13245).

Shapes: b sequences, t positions, s positions attended to, d = d_model, h heads, k key-value heads, e = d_head.
Two concessions to parallelism: both ends may be None, as on a middle pipeline stage, and the number of heads is read
from the tensor, since a tensor rank holds only some of them.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.model.attention import Mask, attend
from gpt.model.config import ModelConfig
from gpt.model.dropout import BlockDropout, ResidualDropout
from gpt.model.heads import VocabularyHead
from gpt.model.rope import Angles, angles_of, rotate


class LayerCache(Protocol):
    """Keys and values of earlier positions for one layer; gpt/inference/kv_cache.py implements it."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (b, k, t, e) and return all of them so far, (b, k, s, e)."""
        ...


class Embedding(nn.Module):
    """Token ids to vectors, plus learned positions if the model has them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.positions = nn.Embedding(config.n_ctx, config.d_model) if config.positions == "learned" else None

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        x: Tensor = self.tokens(tokens)  # (b, t, d)
        if self.positions is not None:
            if positions is None:
                positions = torch.arange(tokens.size(1), device=tokens.device).unsqueeze(0)  # (1, t)
            x = x + self.positions(positions)
        return x


class Attention(nn.Module):
    """Multi-head attention: causal, or as the mask says."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        kv_width = config.kv_heads * config.d_head
        self.q = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.k = nn.Linear(config.d_model, kv_width, bias=config.bias)
        self.v = nn.Linear(config.d_model, kv_width, bias=config.bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.d_head = config.d_head

    def forward(
        self,
        x: Tensor,
        angles: Angles | None = None,
        mask: Mask = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        q, k, v = self.projected(x)
        b, t = q.shape[:2]
        q = q.view(b, t, -1, self.d_head).transpose(1, 2)  # (b, h, t, e)
        k = k.view(b, t, -1, self.d_head).transpose(1, 2)  # (b, k, t, e)
        v = v.view(b, t, -1, self.d_head).transpose(1, 2)  # (b, k, t, e)
        if angles is not None:
            q, k = rotate(q, angles.cos, angles.sin), rotate(k, angles.cos, angles.sin)
        if cache is not None:
            k, v = cache.append(k, v)  # (b, k, s, e)
        y = attend(q, k, v, mask)  # (b, h, t, e)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, t, -1))  # (b, t, d)
        return out

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (b, t, h * e) and twice (b, t, k * e)."""
        return self.q(x), self.k(x), self.v(x)


class GeluMLP(nn.Module):
    """d -> d_ff -> d with GELU in its tanh form, as in GPT-2's code."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        (up,) = self.projected(x)
        y: Tensor = self.down(functional.gelu(up, approximate="tanh"))
        return y

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.up(x),)


class SwiGLUMLP(nn.Module):
    """d -> d_ff -> d, with one half of the first layer gating the other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.projected(x)
        y: Tensor = self.down(functional.silu(gate) * up)
        return y

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.gate(x), self.up(x)


class Block(nn.Module):
    """Attention, then MLP, each applied to a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp = SwiGLUMLP(config) if config.activation == "swiglu" else GeluMLP(config)

    def forward(
        self,
        x: Tensor,
        angles: Angles | None = None,
        mask: Mask = None,
        cache: LayerCache | None = None,
        dropout: BlockDropout | None = None,
    ) -> Tensor:
        attended: Tensor = self.attention(self.attention_norm(x), angles, mask, cache)
        x = x + (attended if dropout is None else dropout(attended, 0))
        y: Tensor = self.mlp(self.mlp_norm(x))
        return x + (y if dropout is None else dropout(y, 1))


class GPT(nn.Module):
    """A decoder transformer, or the consecutive part of one that `layers` (numbers of blocks) names.

    `embed` and `head` replace the two ends. `embed(x, positions)` turns the model's input into (b, t, d); `head` maps
    (b, t, d) to (b, t, k), see gpt/model/heads.py. The part without the model's start (`first` False) has no `embed`;
    the one without its end (`last` False) has neither the final norm nor a head.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: range | None = None,
        *,
        first: bool = True,
        last: bool = True,
        embed: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        layers = range(config.n_layers) if layers is None else layers
        self.config = config
        self.embed = (Embedding(config) if embed is None else embed) if first else None
        self.blocks = nn.ModuleDict({str(layer): Block(config) for layer in layers})
        self.norm = _norm(config) if last else None
        self.head = (VocabularyHead(config) if head is None else head) if last else None
        self.predicts_tokens = isinstance(self.head, VocabularyHead)
        self.tie()

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def tied(self) -> bool:
        """Return whether the head uses the weight of the token embedding, even if the two are on different ranks."""
        ends = (self.embed is None or isinstance(self.embed, Embedding)) and (
            self.head is None or isinstance(self.head, VocabularyHead)
        )
        return self.config.tied and ends

    def tie(self) -> None:
        """Share one weight between embedding and head, if this part has both and they are tied."""
        if self.tied and isinstance(self.embed, Embedding) and isinstance(self.head, VocabularyHead):
            self.head.weight = self.embed.tokens.weight

    def hidden_states(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Mask = None,
        cache: Mapping[str, LayerCache] | None = None,
        dropout: ResidualDropout | None = None,
    ) -> Tensor:
        """The last residual stream (b, t, d), normalised if this part has the model's end.

        `x`: token ids (b, t), or (b, t, d) without `embed`. `positions`: (b, t) or (1, t), counted from 0 if None.
        `mask`: see `attend`; None is causal, which with a cache needs t = 1 or an empty cache. `cache`: by layer name.
        """
        angles = angles_of(self.config, positions, length=x.size(1), device=x.device)
        if self.embed is not None:
            x = self.embed(x, positions)
        for name, block in self.blocks.items():
            of_layer = () if dropout is None else (dropout.of_layer(int(name)),)  # blocks for inference take none
            x = block(x, angles, mask, None if cache is None else cache[name], *of_layer)
        return x if self.norm is None else self.norm(x)

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Mask = None,
        cache: Mapping[str, LayerCache] | None = None,
    ) -> Tensor:
        """The head's output: logits (b, t, vocab_size), or (b, t, k) of another head; (b, t, d) without a head.

        Arguments as for `hidden_states`.
        """
        x = self.hidden_states(x, positions=positions, mask=mask, cache=cache)
        if self.head is None:
            return x
        y: Tensor = self.head(x)
        return y[..., : self.vocab_size] if self.predicts_tokens else y


def _norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)

"""A dense decoder transformer for one device; knows nothing of parallelism (parallel/ wraps it from outside).

GPT-3 (arXiv 2005.14165, section 2.1): learned positions, LayerNorm before each sub-layer, GELU, tied embeddings.
By configuration also RMSNorm (1910.07467), rotary positions (2104.09864), SwiGLU (2002.05202) and grouped-query
attention (2305.13245).

Shapes: b sequences, t positions, s positions attended to, d = d_model, h heads, k key-value heads, e = d_head.
Both ends may be None, as on a pipeline stage in the middle; heads are counted from the tensor, since a tensor rank
holds only some of them.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.model.attention import attend
from gpt.model.config import ModelConfig
from gpt.model.rope import Angles, _rotary, rotary_angles, rotate


class LayerCache(Protocol):
    """Keys and values of earlier positions for one layer (gpt/inference/model.py has the real one)."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (b, k, t, e) keys and values; returns all of them so far, (b, k, s, e)."""
        ...


class Embedding(nn.Module):
    """Token ids to vectors, with learned positions added where the model has them."""

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
    """Multi-head attention, causal unless a mask says otherwise."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        kv_width = config.kv_heads * config.d_head
        self.q = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.k = nn.Linear(config.d_model, kv_width, bias=config.bias)
        self.v = nn.Linear(config.d_model, kv_width, bias=config.bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.d_head = config.d_head
        self.rotary = _rotary(config)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | Angles | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        b, t = x.shape[:2]
        q = self.q(x).view(b, t, -1, self.d_head).transpose(1, 2)  # (b, h, t, e)
        k = self.k(x).view(b, t, -1, self.d_head).transpose(1, 2)  # (b, k, t, e)
        v = self.v(x).view(b, t, -1, self.d_head).transpose(1, 2)  # (b, k, t, e)
        if self.rotary is not None:
            if positions is None:
                positions = torch.arange(t, device=x.device).unsqueeze(0)  # (1, t)
            if isinstance(positions, Angles):
                cos, sin = positions.cos, positions.sin
            else:
                cos, sin = rotary_angles(positions, *self.rotary)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(k, v)  # (b, k, s, e)
        y = attend(q, k, v, mask)  # (b, h, t, e)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, t, -1))  # (b, t, d)
        return out


class GeluMLP(nn.Module):
    """d -> d_ff -> d with GELU in its tanh form, as GPT-2's code has it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(functional.gelu(self.up(x), approximate="tanh"))
        return y


class SwiGLUMLP(nn.Module):
    """d -> d_ff -> d, one half of the first layer gating the other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return y


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp = SwiGLUMLP(config) if config.activation == "swiglu" else GeluMLP(config)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | Angles | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), positions, mask, cache)
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class GPT(nn.Module):
    """A decoder transformer. `layers` picks the blocks held here, by their number in the whole model."""

    def __init__(
        self, config: ModelConfig, layers: range | None = None, *, first: bool = True, last: bool = True
    ) -> None:
        super().__init__()
        layers = range(config.n_layers) if layers is None else layers
        self.vocab_size = config.vocab_size
        self.embed = Embedding(config) if first else None
        self.blocks = nn.ModuleDict({str(layer): Block(config) for layer in layers})
        self.norm = _norm(config) if last else None
        self.head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False) if last else None
        self.rotary = _rotary(config)
        self.tied = config.tied
        self.tie()

    def tie(self) -> None:
        """Share one weight between embedding and head, where this piece of the model has both and they are tied."""
        if self.tied and self.embed is not None and self.head is not None:
            self.head.weight = self.embed.tokens.weight

    def hidden_states(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Mapping[str, LayerCache] | None = None,
    ) -> Tensor:
        """The last residual stream, normalised where this piece has the end of the model: (b, t, d).

        `x`: token ids (b, t), or (b, t, d) on a piece without the embedding. `positions`: (b, t) or (1, t), counted
        from 0 when None. `mask`: booleans that broadcast to (b, h, t, s), True where attention may look; None is
        causal, which with a cache needs t = 1 or an empty cache. `cache`: by layer name.
        """
        if self.embed is not None:
            x = self.embed(x, positions)
        place: Tensor | Angles | None = positions
        if cache is not None and positions is not None and self.rotary is not None:
            place = Angles(*rotary_angles(positions, *self.rotary))  # a step of generation is many small operations
        for name, block in self.blocks.items():
            x = block(x, place, mask, None if cache is None else cache[name])
        return x if self.norm is None else self.norm(x)

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Mapping[str, LayerCache] | None = None,
    ) -> Tensor:
        """Logits (b, t, vocab_size), or (b, t, d) on a piece without the head; arguments as `hidden_states`."""
        x = self.hidden_states(x, positions=positions, mask=mask, cache=cache)
        return x if self.head is None else self.head(x)[..., : self.vocab_size]


def _norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)

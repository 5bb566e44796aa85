"""A model that is asked with a key-value cache: what a pass reads, what may be asked of it; never trains.

Shapes: b rows, t tokens that a pass reads, s positions so far, v vocab_size, k key-value heads, e = d_head; n places or
rows that are asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt.inference.token_scores import token_scores
from gpt.model.gpt import GPT


class KeyValueCache:
    """Keys and values of one layer, (b, k, capacity, e), allocated once, at the first append."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (b, k, t, e) keys and values; returns all so far, (b, k, s, e), as views that a later append extends."""
        if self._k is None or self._v is None:
            shape = (*k.shape[:2], self.capacity, k.size(3))
            self._k, self._v = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.size(2)
        assert end <= self.capacity, f"{end} positions in a cache of {self.capacity}"
        self._k[:, :, self.length : end] = k
        self._v[:, :, self.length : end] = v
        self.length = end
        return self._k[:, :, :end], self._v[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence but these (n,), in this order."""
        if self._k is not None and self._v is not None:
            self._k, self._v = self._k[rows], self._v[rows]

    def spread(self, columns: Tensor, capacity: int) -> "KeyValueCache":
        """A cache of n sequences, which holds for each its own `columns` (n, w) of this one's only sequence."""
        assert self._k is not None
        assert self._v is not None
        result = KeyValueCache(capacity)
        result.append(self._k[0][:, columns].transpose(0, 1), self._v[0][:, columns].transpose(0, 1))
        return result

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        assert length <= self.length, f"{length} positions of {self.length}"
        self.length = length


def make_cache(model: GPT, capacity: int) -> dict[str, KeyValueCache]:
    """An empty cache for each layer that `model` holds, by layer name, as `GPT.forward` takes it."""
    return {name: KeyValueCache(capacity) for name in model.blocks}


@dataclass(frozen=True)
class Pass:
    """Tokens (b, t) to be read, which go on from the `earlier` ones in the cache; `positions` (b, t) or (1, t),
    `mask` and `cache` as in GPT.forward."""

    tokens: Tensor
    positions: Tensor
    mask: Tensor | None = None
    cache: Mapping[str, KeyValueCache] | None = None
    earlier: int = 0


class Model(Protocol):
    """What generation and evaluation ask of a model; parallel/inference/model.py has one over many ranks.

    Places are numbers row * t + column in the tokens of a pass.

    Each of `data_size` data ranks has a whole model and may ask it what others do not; the ranks of one ask alike.
    """

    vocab_size: int
    device: torch.device
    data_rank: int
    data_size: int

    def gather(self, values: list[Any]) -> list[list[Any]]:
        """Every data rank's values, by data rank; every rank calls it."""
        ...

    def make_cache(self, capacity: int) -> dict[str, KeyValueCache]:
        """Empty caches of the layers held here, by layer name."""
        ...

    def next_logits(self, read: Pass, *, places: Tensor | None = None) -> Tensor:
        """Logits (n, v) fp32 after the tokens at `places` (n,), or (b, v) after the last of each row."""
        ...

    def log_probs(self, read: Pass, *, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability, fp32 (n,), of each of `targets` (n,) after the token at its place, and whether it is the
        likeliest, bool (n,). `places` rise and may repeat; none are asked when the tokens are only to be cached."""
        ...


class OneDevice:
    """A whole GPT on one device, as a Model."""

    def __init__(self, model: GPT) -> None:
        assert model.head is not None
        self.model = model
        self.head = model.head
        self.vocab_size = model.vocab_size
        self.device = next(model.parameters()).device
        self.data_rank, self.data_size = 0, 1

    def gather(self, values: list[Any]) -> list[list[Any]]:
        return [values]

    def make_cache(self, capacity: int) -> dict[str, KeyValueCache]:
        return make_cache(self.model, capacity)

    def next_logits(self, read: Pass, *, places: Tensor | None = None) -> Tensor:
        hidden = self._hidden(read)
        asked = hidden[:, -1] if places is None else hidden.flatten(0, 1)[places]
        logits: Tensor = self.head(asked)  # the head is most of a small model: apply it where it is needed
        return logits[:, : self.vocab_size].float()

    def log_probs(self, read: Pass, *, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._hidden(read)
        return token_scores(hidden, self.head, places=places, targets=targets, vocab_size=self.vocab_size)

    def _hidden(self, read: Pass) -> Tensor:
        return self.model.hidden_states(read.tokens, positions=read.positions, mask=read.mask, cache=read.cache)


def as_model(model: GPT | Model) -> Model:
    """A GPT as a Model; what is one already stays."""
    return OneDevice(model) if isinstance(model, GPT) else model

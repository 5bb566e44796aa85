"""A model that is asked with a key-value cache: what a pass reads, what may be asked of it; never trains.

Shapes: b rows, t tokens that a pass reads, s positions so far, v vocab_size, k key-value heads, e = d_head; n places or
rows that are asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt.inference.kv_cache import KeyValueCache, make_cache
from gpt.inference.token_scores import token_scores
from gpt.model.gpt import GPT


@dataclass(frozen=True)
class ForwardInputs:
    """Tokens (b, t) to be read, which go on from the `earlier` ones in the cache; `positions` (b, t) or (1, t),
    `mask` and `cache` as in GPT.forward."""

    tokens: Tensor
    positions: Tensor
    mask: Tensor | None = None
    cache: Mapping[str, KeyValueCache] | None = None
    earlier: int = 0


class InferenceModel(Protocol):
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

    def next_logits(self, inputs: ForwardInputs, *, places: Tensor | None = None) -> Tensor:
        """Logits (n, v) fp32 after the tokens at `places` (n,), or (b, v) after the last of each row."""
        ...

    def log_probs(self, inputs: ForwardInputs, *, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability, fp32 (n,), of each of `targets` (n,) after the token at its place, and whether it is the
        likeliest, bool (n,). `places` rise and may repeat; none are asked when the tokens are only to be cached."""
        ...


class LocalModel:
    """A whole GPT on one device, as an InferenceModel."""

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

    def next_logits(self, inputs: ForwardInputs, *, places: Tensor | None = None) -> Tensor:
        hidden = self._hidden(inputs)
        asked = hidden[:, -1] if places is None else hidden.flatten(0, 1)[places]
        logits: Tensor = self.head(asked)  # the head is most of a small model: apply it where it is needed
        return logits[:, : self.vocab_size].float()

    def log_probs(self, inputs: ForwardInputs, *, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._hidden(inputs)
        return token_scores(hidden, self.head, places=places, targets=targets, vocab_size=self.vocab_size)

    def _hidden(self, inputs: ForwardInputs) -> Tensor:
        return self.model.hidden_states(inputs.tokens, positions=inputs.positions, mask=inputs.mask, cache=inputs.cache)


def as_model(model: GPT | InferenceModel) -> InferenceModel:
    """A GPT as an InferenceModel; what is one already stays."""
    return LocalModel(model) if isinstance(model, GPT) else model

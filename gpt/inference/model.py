"""The interface between generation or evaluation and a model with a key-value cache.

Shapes: b rows, t tokens of a forward pass, s positions so far, v vocab_size, n tokens that the caller asks about.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt.inference.kv_cache import KeyValueCache, make_cache
from gpt.inference.token_scores import token_scores
from gpt.model.gpt import GPT


@dataclass(frozen=True)
class ForwardInputs:
    """Inputs of one forward pass: tokens (b, t) that follow those in the cache.

    `positions` (b, t) or (1, t), `mask` and `cache` as in GPT.forward.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor | None = None
    cache: Mapping[str, KeyValueCache] | None = None


class InferenceModel(Protocol):
    """The interface of a model for generation and evaluation. parallel/inference/model.py implements it over many
    ranks.

    An index names a token of a forward pass by row * t + column.

    Each of the `data_size` data ranks has a whole model and may work on requests of its own. The ranks of one data
    rank make the same calls in the same order.
    """

    vocab_size: int
    device: torch.device
    data_rank: int
    data_size: int

    def gather(self, values: list[Any]) -> list[list[Any]]:
        """Return the values of every data rank, by data rank. Every rank must call it."""
        ...

    def finish(self, *, before_each: Callable[[], None] = lambda: None) -> None:
        """Serve the data ranks that still compute with this one's weights. Call it after the last forward pass.

        `before_each` is called before each pass that it serves, such as a heartbeat.
        """
        ...

    def make_cache(self, capacity: int) -> dict[str, KeyValueCache]:
        """Return empty caches of `capacity` positions for the layers held here, by layer name."""
        ...

    def next_logits(self, inputs: ForwardInputs, *, indices: Tensor | None = None) -> Tensor:
        """Return logits (n, v) fp32 after the tokens at `indices` (n,), or (b, v) after the last token of each row."""
        ...

    def log_probs(self, inputs: ForwardInputs, *, indices: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Score each of `targets` (n,) as the token after the one at its index (n,).

        Returns the log-probabilities in nats, fp32 (n,), and whether each target is the most likely token, bool (n,).
        `indices` rise and may repeat. They are empty if the pass only fills the cache.
        """
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

    def finish(self, *, before_each: Callable[[], None] = lambda: None) -> None:
        pass

    def make_cache(self, capacity: int) -> dict[str, KeyValueCache]:
        return make_cache(self.model, capacity)

    def next_logits(self, inputs: ForwardInputs, *, indices: Tensor | None = None) -> Tensor:
        hidden = self._hidden(inputs)
        # The head is most of a small model's work: apply it only to the tokens that the caller asks about.
        logits: Tensor = self.head(hidden[:, -1] if indices is None else hidden.flatten(0, 1)[indices])
        return logits[:, : self.vocab_size].float()

    def log_probs(self, inputs: ForwardInputs, *, indices: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._hidden(inputs)
        return token_scores(hidden, self.head, indices=indices, targets=targets, vocab_size=self.vocab_size)

    def _hidden(self, inputs: ForwardInputs) -> Tensor:
        return self.model.hidden_states(inputs.tokens, positions=inputs.positions, mask=inputs.mask, cache=inputs.cache)


def as_model(model: GPT | InferenceModel) -> InferenceModel:
    """Wrap a GPT as an InferenceModel. Returns an InferenceModel unchanged."""
    return LocalModel(model) if isinstance(model, GPT) else model

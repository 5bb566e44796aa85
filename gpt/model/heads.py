"""The end of a model: logits over a vocabulary, a number, classes, or nothing.

A head maps hidden states (b, t, d) to (b, t, k). Pass one to `GPT(config, head=...)`.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.losses.base import VocabularyOutputs, whole_vocabulary
from gpt.model.config import ModelConfig
from gpt.model.dropout import BlockDropout, ResidualDropout

_LAYER = -1  # of a head, in the keys of dropout: blocks count from 0


class VocabularyHead(nn.Linear):
    """Logits over the padded vocabulary, (b, t, padded_vocab_size); its weight may be the token embedding's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.d_model, config.padded_vocab_size, bias=False)
        self.vocab_size = config.vocab_size


class ScalarHead(nn.Module):
    """One number a position, (b, t, 1), such as a reward or a value: in at least fp32, also of bf16 hidden states.

    See initialisation.start_of for its start.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.value = nn.Linear(config.d_model, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return wide_linear(hidden, self.value)


def wide_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer in at least fp32, also of bf16 inputs and weights: bf16 would round a score to 3 digits."""
    wide = torch.promote_types(x.dtype, torch.float32)
    bias = None if layer.bias is None else layer.bias.to(wide)
    return functional.linear(x.to(wide), layer.weight.to(wide), bias)


class ClassHead(nn.Linear):
    """Logits of `n_classes` classes a position, (b, t, n_classes)."""

    def __init__(self, config: ModelConfig, *, n_classes: int) -> None:
        super().__init__(config.d_model, n_classes)


class NoHead(nn.Identity):
    """The normalised hidden states themselves, (b, t, d)."""


@runtime_checkable
class DroppingHead(Protocol):
    """A head that sets elements to 0 in training, the share `dropout_rate` of them, by masks that no layout changes."""

    dropout_rate: float

    def __call__(self, hidden: Tensor, dropout: BlockDropout | None = None) -> Tensor:
        """(b, t, k) from (b, t, d). Without `dropout` nothing is dropped."""
        ...


def drops(head: nn.Module | None) -> bool:
    """Return whether a head drops elements in training."""
    return isinstance(head, DroppingHead) and head.dropout_rate > 0


def head_outputs(head: nn.Module, hidden: Tensor, keys: Tensor | None = None) -> Any:
    """The input of a loss, on one device: VocabularyOutputs of a vocabulary head, else the head's output (b, t, k).

    `keys`: see `run_head`.
    """
    if isinstance(head, VocabularyHead):
        return VocabularyOutputs(hidden, head.weight, whole_vocabulary(head.vocab_size))
    return run_head(head, hidden, keys)


def run_head(head: nn.Module, hidden: Tensor, keys: Tensor | None) -> Tensor:
    """A head's output (b, t, k). `keys` (b, t): those of the positions, for dropout in training; None drops nothing."""
    y: Tensor
    if keys is None or not drops(head):
        y = head(hidden)
        return y
    assert isinstance(head, DroppingHead)
    y = head(hidden, ResidualDropout(keys, head.dropout_rate).of_layer(_LAYER))
    return y

"""The end of a model: logits over a vocabulary, a number, classes, or nothing.

A head maps hidden states (b, t, d) to (b, t, k). Pass one to `GPT(config, head=...)`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.losses.base import VocabularyOutputs, whole_vocabulary
from gpt.model.config import ModelConfig


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
        wide = torch.promote_types(hidden.dtype, torch.float32)  # bf16 would round rewards to 3 digits
        return functional.linear(hidden.to(wide), self.value.weight.to(wide), self.value.bias.to(wide))


class ClassHead(nn.Linear):
    """Logits of `n_classes` classes a position, (b, t, n_classes)."""

    def __init__(self, config: ModelConfig, *, n_classes: int) -> None:
        super().__init__(config.d_model, n_classes)


class NoHead(nn.Identity):
    """The normalised hidden states themselves, (b, t, d)."""


def head_outputs(head: nn.Module, hidden: Tensor) -> Any:
    """The input of a loss, on one device: VocabularyOutputs of a vocabulary head, else the head's output (b, t, k)."""
    if isinstance(head, VocabularyHead):
        return VocabularyOutputs(hidden, head.weight, whole_vocabulary(head.vocab_size))
    return head(hidden)

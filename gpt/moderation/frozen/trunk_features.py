"""Features of texts from several layers of a frozen trunk, in one process: the mean over a text and its last token.

A middle layer often tells more of a text than the last one, which is made to predict a token.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt.errors import ConfigError
from gpt.model.gpt import GPT

_ROWS = 16


@torch.inference_mode()
def layer_features(
    model: GPT,
    texts: Sequence[NDArray[np.integer]],
    layers: Sequence[int],
    *,
    batch_tokens: int = 2048,
    advance: Callable[[int], None] = lambda n: None,
) -> NDArray[np.float32]:
    """(n, len(layers) * 2 * d): of each layer the mean of a text's hidden states, and that of its last token.

    `model`: a whole model, or the first part of one, with causal attention. `texts`: token ids with the
    end-of-document token. Layer 8 is the residual stream after 8 blocks; that after the last one is normalised.
    `advance` gets the number of texts done. ConfigError: a layer that the model does not have.
    """
    for layer in layers:
        if not 1 <= layer <= len(model.blocks):
            raise ConfigError(f"layer {layer} is invalid: the trunk has the layers 1 to {len(model.blocks)}")
    d, device = model.config.d_model, next(model.parameters()).device
    found = np.zeros((len(texts), len(layers), 2, d), dtype=np.float32)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    start = 0
    while start < len(by_length):
        longest = len(texts[by_length[min(start + _ROWS, len(by_length)) - 1]])
        rows = by_length[start : start + min(_ROWS, max(1, batch_tokens // longest))]
        lengths = torch.tensor([len(texts[i]) for i in rows], device=device)
        tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64, device=device)
        for row, i in enumerate(rows):
            tokens[row, : len(texts[i])] = torch.from_numpy(np.asarray(texts[i], dtype=np.int64))
        for at, hidden in enumerate(_of_layers(model, tokens, layers)):
            inside = torch.arange(tokens.size(1), device=device) < lengths.unsqueeze(1)  # padding is behind each text
            mean = (hidden * inside.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)
            last = hidden[torch.arange(len(rows), device=device), lengths - 1]
            found[rows, at] = torch.stack((mean, last), dim=1).cpu().numpy()
        start += len(rows)
        advance(len(rows))
    return found.reshape(len(texts), -1)


def _of_layers(model: GPT, tokens: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """The hidden states (b, t, d) in fp32 after each of these layers."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            kept[layer] = output.float()

        return hook

    blocks = [*model.blocks.values()]
    hooks = [blocks[layer - 1].register_forward_hook(keep(layer)) for layer in layers]
    try:
        last = model.hidden_states(tokens).float()
    finally:
        for hook in hooks:
            hook.remove()
    return [last if layer == len(model.blocks) and model.norm is not None else kept[layer] for layer in layers]

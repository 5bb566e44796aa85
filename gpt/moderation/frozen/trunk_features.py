"""Features of texts from several layers of a frozen trunk, in one process: hidden states pooled over the tokens.

A middle layer often describes a text better than the last one, which is trained to predict a token.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt.errors import ConfigError
from gpt.model.gpt import GPT

POOLS = ("mean", "last", "max")


@torch.inference_mode()
def layer_features(
    model: GPT,
    texts: Sequence[NDArray[np.integer]],
    layers: Sequence[int],
    *,
    pools: Sequence[str] = ("mean", "last"),
    skip: int = 0,
    batch_tokens: int = 2048,
    advance: Callable[[int], None] = lambda n: None,
) -> NDArray[np.float32]:
    """(n, len(layers) * len(pools) * d): of each layer, the hidden states of a text, pooled over its tokens.

    `model`: a whole model, or the first part of one, with causal attention. `texts`: token ids with the
    end-of-document token. Layer 8 is the residual stream after 8 blocks; that after the last one is normalised.
    `pools`: the mean, the last token, and the maximum of each component. `skip`: the first tokens of each text that the
    model reads and the pools leave out, such as a prefix that all texts share. `advance` gets the number of texts done.
    ConfigError: a layer that the model does not have, an unknown pool, or a text without a token after `skip`.
    """
    _check(model, texts, layers, pools, skip)
    d, device = model.config.d_model, next(model.parameters()).device
    found = np.zeros((len(texts), len(layers), len(pools), d), dtype=np.float32)
    for rows in _batches([len(text) for text in texts], batch_tokens):
        lengths = torch.tensor([len(texts[i]) for i in rows], device=device)
        tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64, device=device)
        for row, i in enumerate(rows):
            tokens[row, : len(texts[i])] = torch.from_numpy(np.asarray(texts[i], dtype=np.int64))
        for at, hidden in enumerate(_of_layers(model, tokens, layers)):
            pooled = [_pool(hidden[:, skip:], lengths - skip, pool) for pool in pools]
            found[rows, at] = torch.stack(pooled, dim=1).cpu().numpy()
        advance(len(rows))
    return found.reshape(len(texts), -1)


def _check(
    model: GPT, texts: Sequence[NDArray[np.integer]], layers: Sequence[int], pools: Sequence[str], skip: int
) -> None:
    for layer in layers:
        if not 1 <= layer <= len(model.blocks):
            raise ConfigError(f"layer {layer} is invalid: the trunk has the layers 1 to {len(model.blocks)}")
    for pool in pools:
        if pool not in POOLS:
            raise ConfigError(f"pool '{pool}' is invalid: must be one of {', '.join(POOLS)}")
    shortest = min(map(len, texts), default=skip + 1)
    if shortest <= skip:
        raise ConfigError(
            f"skip = {skip} is invalid: the shortest text has {shortest} tokens. Use at most {shortest - 1}"
        )


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """The texts by length, as many in a batch as `batch_tokens` hold with their padding, and at least one."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _pool(hidden: Tensor, lengths: Tensor, pool: str) -> Tensor:
    """(b, d) from hidden states (b, t, d) and the tokens of each text (b,); padding is behind each text."""
    if pool == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    inside = (torch.arange(hidden.size(1), device=hidden.device) < lengths.unsqueeze(1)).unsqueeze(-1)
    if pool == "max":
        return hidden.masked_fill(~inside, float("-inf")).amax(1)
    return (hidden * inside).sum(1) / lengths.unsqueeze(1)


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

"""Log-probabilities of given tokens, computed from hidden states. The head runs only where a token is scored.

Shapes: n pairs of an index and a target token, m different indices, v vocab_size; in one chunk, c indices and p pairs.
An index names a token of the batch by row * t + column.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpt.losses.base import VocabShard
from gpt.losses.linear_cross_entropy import chunk_tokens


def token_scores(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    indices: Tensor,
    targets: Tensor,
    vocab_size: int,
    shard: VocabShard | None = None,
) -> tuple[Tensor, Tensor]:
    """Score each of `targets` (n,) as the token after the one at its index.

    Returns the log-probabilities in nats, fp32 (n,), and whether each target is the most likely token, bool (n,).

    `hidden` (b, t, d); `head` maps (c, d) to logits (c, v or more). `indices` (n,) rise and may repeat; a repeated
    index costs one row of logits. With `shard`, the head gives only the logits of the vocabulary rows held here. Then
    all holders must call this; they reduce three numbers for each index and one for each pair.
    """
    flat = hidden.flatten(0, 1)
    rows, row_of = torch.unique_consecutive(indices, return_inverse=True)  # (m,), (n,)
    log_probs = torch.empty(indices.numel(), dtype=torch.float32, device=indices.device)
    greedy = torch.empty(indices.numel(), dtype=torch.bool, device=indices.device)
    step = chunk_tokens(vocab_size if shard is None else shard.max_rows, hidden.device)
    starts = range(0, rows.numel(), step)
    # `row_of` rises, so a chunk's pairs are a slice. All bounds are read at once: each read waits for the device.
    bounds = torch.searchsorted(row_of, torch.tensor([*starts, rows.numel()], device=row_of.device)).tolist()
    for start, first, end in zip(starts, bounds, bounds[1:], strict=False):
        logits = head(flat[rows[start : start + step]]).float()  # (c, v or more)
        pairs = slice(first, end)
        row, target = row_of[pairs] - start, targets[pairs]  # (p,)
        if shard is None:
            logits = logits[:, :vocab_size]
            chosen, log_z, likeliest = logits[row, target], logits.logsumexp(dim=-1), logits.argmax(dim=-1)
        else:
            chosen, log_z, likeliest = _reduce_over_shards(logits, row, target, shard)
        log_probs[pairs] = chosen - log_z[row]
        greedy[pairs] = likeliest[row] == target
    return log_probs, greedy


def _reduce_over_shards(
    logits: Tensor, row: Tensor, target: Tensor, shard: VocabShard
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logit of each target (p,), and log-sum-exp and argmax of each row (c,), over the whole vocabulary.

    If several are equal, argmax returns the first, as on one device.
    """
    size = logits.size(1)
    logits[:, max(0, shard.vocab_size - shard.start) :] = -torch.inf  # padding
    local_max, local_argmax = logits.max(dim=-1)
    largest = shard.reduce_max(local_max.clone())  # a clone, since the reduction may work in place
    sums = shard.reduce_sum((logits - largest.unsqueeze(1)).exp().sum(dim=-1))
    candidate = (local_argmax + shard.start).where(local_max == largest, shard.vocab_size)
    likeliest = -shard.reduce_max(-candidate)
    column = target - shard.start
    held = (column >= 0) & (column < size)
    chosen = shard.reduce_sum(logits[row, column.clamp(0, size - 1)].where(held, 0.0))
    return chosen, largest + sums.log(), likeliest

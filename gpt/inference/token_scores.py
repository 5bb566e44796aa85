"""Log-probabilities of given tokens from the hidden states before them; the head runs on those places alone.

Shapes: m places in a batch (b * t), n pairs of a place and a token, v vocab_size; of a chunk, c places and p pairs.
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
    places: Tensor,
    targets: Tensor,
    vocab_size: int,
    shard: VocabShard | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability in nats, fp32 (n,), of each of `targets` after its place, and whether it is the likeliest, (n,).

    `hidden` (b, t, d); `head` maps (c, d) to logits (c, v or more); `places` (n,) are row * t + column, rising. Several
    tokens may be asked of one place, which costs one row of logits. `shard`: the head gives only the logits of the rows
    held here, and all holders call this together; three numbers for each place and one for each pair are reduced.
    """
    flat = hidden.flatten(0, 1)
    rows, row_of = torch.unique_consecutive(places, return_inverse=True)  # (m,), (n,)
    log_probs = torch.empty(places.numel(), dtype=torch.float32, device=places.device)
    greedy = torch.empty(places.numel(), dtype=torch.bool, device=places.device)
    step = chunk_tokens(vocab_size if shard is None else shard.max_rows, hidden.device)
    for start in range(0, rows.numel(), step):
        logits = head(flat[rows[start : start + step]]).float()  # (c, v or more)
        here = (row_of >= start) & (row_of < start + step)
        row, wanted = row_of[here] - start, targets[here]
        if shard is None:
            logits = logits[:, :vocab_size]
            chosen, log_z, likeliest = logits[row, wanted], logits.logsumexp(dim=-1), logits.argmax(dim=-1)
        else:
            chosen, log_z, likeliest = _over_shards(logits, row, wanted, shard)
        log_probs[here] = chosen - log_z[row]
        greedy[here] = likeliest[row] == wanted
    return log_probs, greedy


def _over_shards(logits: Tensor, row: Tensor, wanted: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor, Tensor]:
    """The logit of each wanted token (p,), and of each row (c,) the log of the sum of exponentials and the likeliest
    token, the first of equals, over all holders of the vocabulary."""
    size = logits.size(1)
    logits[:, max(0, shard.vocab_size - shard.start) :] = -torch.inf  # padding
    largest_here, place = logits.max(dim=-1)
    largest = shard.reduce_max(largest_here.clone())  # which may work in place
    sums = shard.reduce_sum((logits - largest.unsqueeze(1)).exp().sum(dim=-1))
    candidate = (place + shard.start).where(largest_here == largest, shard.vocab_size)
    likeliest = -shard.reduce_max(-candidate)
    column = wanted - shard.start
    held = (column >= 0) & (column < size)
    chosen = shard.reduce_sum(logits[row, column.clamp(0, size - 1)].where(held, 0.0))
    return chosen, largest + sums.log(), likeliest

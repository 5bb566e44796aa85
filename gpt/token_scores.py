"""Log-probabilities of given tokens from the hidden states before them; the head runs on those places alone.

Shapes: m places in a batch (b * t), n pairs of a place and a token, v vocab_size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpt.loss import chunk_tokens


def token_scores(
    hidden: Tensor, head: Callable[[Tensor], Tensor], *, places: Tensor, targets: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Log-probability in nats, fp32 (n,), of each of `targets` after its place, and whether it is the likeliest, (n,).

    `hidden` (b, t, d); `head` maps (c, d) to logits (c, v or more); `places` (n,) are row * t + column, rising. Several
    tokens may be asked of one place, which costs one row of logits.
    """
    flat = hidden.flatten(0, 1)
    rows, row_of = torch.unique_consecutive(places, return_inverse=True)  # (m,), (n,)
    log_probs = torch.empty(places.numel(), dtype=torch.float32, device=places.device)
    greedy = torch.empty(places.numel(), dtype=torch.bool, device=places.device)
    step = chunk_tokens(vocab_size, hidden.device)
    for start in range(0, rows.numel(), step):
        logits = head(flat[rows[start : start + step]])[:, :vocab_size].float()  # (c, v)
        here = (row_of >= start) & (row_of < start + step)
        row, wanted = row_of[here] - start, targets[here]
        log_probs[here] = logits[row, wanted] - logits.logsumexp(dim=-1)[row]
        greedy[here] = logits.argmax(dim=-1)[row] == wanted
    return log_probs, greedy

"""Choose the next token from logits: greedily, or by temperature, top-k, top-p and a repetition penalty.

Shapes: b sequences, v vocab_size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt.inference.sampling_settings import Sampling


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor | None = None, *, seen: Tensor | None = None) -> Tensor:
    """Choose one token (b,) for each row of logits (b, v).

    `uniform` (b,) in [0, 1) decides each draw; temperature 0 does not need it. `seen` (b, v) is True for each token
    that the text contains; a repetition penalty needs it.
    """
    if sampling.repetition_penalty != 1.0:
        assert seen is not None
        logits = penalised(logits, seen, sampling.repetition_penalty)
    if not sampling.temperature:
        return logits.argmax(dim=-1)
    assert uniform is not None
    probabilities = kept_probabilities(logits / sampling.temperature, sampling)
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    target = uniform.to(cumulative).unsqueeze(1) * total
    index = torch.searchsorted(cumulative, target, right=True)
    # Rounding can make the target the total itself, which no token exceeds: then take the first that reaches it.
    last = torch.searchsorted(cumulative, total).clamp_(max=cumulative.size(1) - 1)  # NaN is above every token
    return torch.minimum(index, last).squeeze(1)


def kept_probabilities(scores: Tensor, sampling: Sampling) -> Tensor:
    """Return the probability (b, v) of each token that the filters keep, 0 for the others; a row adds up to 1 at most.

    Tokens stay in the order of the vocabulary. If the draw ran over sorted tokens, two of nearly equal probability
    would swap their intervals by the rounding of another layout, and the draw would give another token.
    """
    probabilities = scores.softmax(dim=-1)
    kept = _max_kept(probabilities, sampling)
    if kept == scores.size(-1) and sampling.top_p is None:
        return probabilities
    top, order = scores.topk(kept, dim=-1)  # (b, kept), most likely first
    kept_probability = top.softmax(dim=-1) if sampling.top_k is not None else probabilities.gather(1, order)
    if sampling.top_p is not None:
        reached_before = kept_probability.cumsum(dim=-1) - kept_probability >= sampling.top_p
        reached_before[:, 0] = False
        kept_probability = kept_probability.masked_fill(reached_before, 0.0)
    return torch.zeros_like(probabilities).scatter(1, order, kept_probability)


def seen_tokens(prompts: Sequence[Sequence[int]], *, vocab_size: int, device: torch.device) -> Tensor:
    """Return (b, v): True for each token that a prompt contains."""
    seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[torch.tensor(prompt)] = True
    return seen.to(device)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens in `seen` (b, v) less likely if `penalty` is above 1, more likely if it is below. Logits (b,
    v)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _max_kept(probabilities: Tensor, sampling: Sampling) -> int:
    """Return an upper bound on the tokens that the filters keep in any row (b, v), so that no more need sorting."""
    v = probabilities.size(-1)
    if sampling.top_k is not None:
        return min(sampling.top_k, v)
    if sampling.top_p is None:
        return v
    # Tokens with a probability of at most (1 - p) / v add up to at most 1 - p, so the others reach p without them. The
    # factor 0.5 leaves room for rounding.
    min_probability = 0.5 * (1.0 - sampling.top_p) / v
    return max(1, int((probabilities > min_probability).sum(dim=-1).max()))

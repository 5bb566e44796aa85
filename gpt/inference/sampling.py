"""Choose the next token from logits: greedily, or by temperature, top-k, top-p and a repetition penalty.

Shapes: b sequences, v vocab_size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """The rule that chooses the next token. Temperature 0 takes the most likely token and draws no random number.

    The steps, in order:
    1. Divide the logit of each token that the prompt or the text so far contains by `repetition_penalty`, or multiply
       it if it is negative (arXiv 1909.05858, section 4.1, in the form of transformers). This applies to temperature 0
       too.
    2. Divide the logits by `temperature`.
    3. Keep the `top_k` most likely tokens.
    4. Keep the fewest of these whose probabilities reach `top_p` (nucleus sampling, arXiv 1904.09751).
    5. Draw one token.

    None switches a filter off.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature = {self.temperature} is invalid: it must be 0 (greedy) or a positive number."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(
                f"top_k = {self.top_k} is invalid: it must be at least 1. Leave it out to keep every token."
            )
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ConfigError(
                f"top_p = {self.top_p} is invalid: it must be above 0 and at most 1. Leave it out to keep every token."
            )
        if not 0.0 < self.repetition_penalty < math.inf:
            raise ConfigError(
                f"repetition_penalty = {self.repetition_penalty} is invalid: it must be a number above 0. Use 1 for no "
                "penalty."
            )


GREEDY = Sampling()


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

"""How the next token is chosen from logits; runs no model.

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
    """How the next token is chosen from the logits. Temperature 0 takes the likeliest and draws nothing.

    Otherwise: logits / temperature, then the `top_k` likeliest, then the fewest of these whose probabilities reach
    `top_p` (nucleus sampling, arXiv 1904.09751), then one draw. None switches a filter off. Before all that, at
    temperature 0 too, the logit of each token that the prompt or the text so far holds is divided by
    `repetition_penalty`, or multiplied where it is negative (arXiv 1909.05858, section 4.1, in transformers' form).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature = {self.temperature} must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k = {self.top_k} must be at least 1; leave it out to keep every token")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p = {self.top_p} must be above 0 and at most 1; leave it out to keep every token")
        if not 0.0 < self.repetition_penalty < math.inf:
            raise ConfigError(
                f"repetition_penalty = {self.repetition_penalty} must be a number above 0; 1 leaves repetition alone"
            )


GREEDY = Sampling()


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor | None = None, *, seen: Tensor | None = None) -> Tensor:
    """One token (b,) for each row of logits (b, v); `uniform` (b,) in [0, 1) decides unless temperature is 0. `seen`
    (b, v): True where a token has been in the text, needed for a repetition penalty."""
    if sampling.repetition_penalty != 1.0:
        assert seen is not None
        logits = penalised(logits, seen, sampling.repetition_penalty)
    if not sampling.temperature:
        return logits.argmax(dim=-1)
    assert uniform is not None
    scores = logits / sampling.temperature
    probabilities, order = scores.softmax(dim=-1), None
    kept = _most_kept(probabilities, sampling)
    if kept < logits.size(-1) or sampling.top_p is not None:
        scores, order = scores.topk(kept, dim=-1)  # (b, kept), falling
        probabilities = scores.softmax(dim=-1) if sampling.top_k is not None else probabilities.gather(1, order)
    cumulative = probabilities.cumsum(dim=-1)
    if sampling.top_p is not None:
        reached_before = cumulative - probabilities >= sampling.top_p
        reached_before[:, 0] = False
        probabilities = probabilities.masked_fill(reached_before, 0.0)
        cumulative = probabilities.cumsum(dim=-1)
    target = uniform.to(cumulative).unsqueeze(1) * cumulative[:, -1:]
    place = (cumulative <= target).sum(dim=-1, keepdim=True)
    places = torch.arange(probabilities.size(-1), device=logits.device)
    last = (places * (probabilities > 0)).amax(dim=-1, keepdim=True)  # rounding must not lead past it
    place = torch.minimum(place, last)
    return (place if order is None else order.gather(1, place)).squeeze(1)


def seen_tokens(prompts: Sequence[Sequence[int]], *, vocab_size: int, device: torch.device) -> Tensor:
    """(b, v): True where a prompt holds a token."""
    seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[torch.tensor(prompt)] = True
    return seen.to(device)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (b, v) with those of tokens seen (b, v) made less likely by `penalty` above 1, likelier below."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _most_kept(probabilities: Tensor, sampling: Sampling) -> int:
    """At least as many of the likeliest tokens as any row (b, v) may draw from, so that no more need be sorted."""
    v = probabilities.size(-1)
    if sampling.top_k is not None:
        return min(sampling.top_k, v)
    if sampling.top_p is None:
        return v
    # All tokens of up to (1 - p) / v together make up at most 1 - p: those above reach p without them. With some room
    # for rounding.
    least = 0.5 * (1.0 - sampling.top_p) / v
    return max(1, int((probabilities > least).sum(dim=-1).max()))

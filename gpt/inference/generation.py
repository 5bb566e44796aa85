"""Continues token sequences with the model's own forward pass and a key-value cache; never trains and knows no text.

Shapes: b sequences, w width of the longest prompt, s positions so far (padding included), v vocab_size.
Prompts of different lengths are right-aligned; what fills the left is masked and has no position of its own, so a
sequence gets the numbers that it would get alone.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.inference.kv_cache import KeyValueCache
from gpt.inference.model import ForwardInputs, InferenceModel, as_model
from gpt.inference.sampling import GREEDY, Sampling, choose, seen_tokens
from gpt.model.gpt import GPT

# Called after each new token with the prompt's number and its new tokens so far; True ends that prompt.
Watch = Callable[[int, list[int]], bool]


@dataclass(frozen=True)
class Continuation:
    """What followed a prompt. A stop id that ended it is its last token.

    `log_probs` are the model's own, in nats: of the whole vocabulary at temperature 1, whatever the sampling was.
    """

    tokens: list[int]
    log_probs: list[float]
    stopped: bool  # by a stop id or by `watch`, not by max_new_tokens


def generate(
    model: GPT | InferenceModel,
    prompts: Sequence[Sequence[int]],
    *,
    n_ctx: int,
    max_new_tokens: int | Sequence[int],
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int] = 0,
    stop_ids: Collection[int] = (),
    n_ids: int | None = None,
    watch: Watch | None = None,
) -> list[Continuation]:
    """Continue every prompt (token ids) in one batch; results in the order of the prompts.

    `max_new_tokens` and `seed`: for all prompts, or one for each. Prompt i draws from a stream of its own that its seed
    starts, `seed + i` where one is given for all, so it gets the same tokens in a batch as alone with that seed.
    `n_ids`: only ids below it are chosen, for a tokenizer with fewer pieces than the model has rows.
    `watch` is called for each token: it streams, and it may end a prompt. Runs on the model's device.
    ConfigError: an empty prompt, an id outside the vocabulary, or a prompt that with max_new_tokens exceeds n_ctx.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    check_prompts(prompts, n_ctx=n_ctx, max_new_tokens=limits, vocab_size=model.vocab_size)
    if not prompts:
        return []
    capacity = max(map(len, prompts)) + max(limits) - 1
    sequences, logits = read_prompts(as_model(model), prompts, capacity=capacity)
    return decode(
        sequences,
        logits,
        prompts,
        limits=limits,
        seeds=seeds,
        sampling=sampling,
        stop_ids=stop_ids,
        n_ids=n_ids,
        watch=watch,
    )


class Rows(Protocol):
    """Sequences that go on by a token each at a time."""

    def read_token(self, tokens: Tensor) -> Tensor:
        """Logits (b, v) fp32 after one more token (b,) in each sequence."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence but these (n,), in this order."""
        ...


def decode(
    sequences: Rows,
    logits: Tensor,
    prompts: Sequence[Sequence[int]],
    *,
    limits: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
    n_ids: int | None = None,
    watch: Watch | None = None,
) -> list[Continuation]:
    """What follows prompts that have been read, given the logits (b, v) after them. Arguments as `generate`'s, with one
    limit and one seed for each prompt."""
    draws = [random.Random(start) for start in seeds]
    tokens: list[list[int]] = [[] for _ in prompts]
    log_probs: list[list[float]] = [[] for _ in prompts]
    stopped, ended = [False] * len(prompts), [False] * len(prompts)
    seen = None
    if sampling.repetition_penalty != 1.0:
        seen = seen_tokens(prompts, vocab_size=logits.size(1), device=logits.device)
    rows = list(range(len(prompts)))  # the prompt of each row of the batch
    while True:
        uniform = torch.tensor([draws[i].random() for i in rows]) if sampling.temperature else None
        chosen = choose(logits[:, :n_ids], sampling, uniform, seen=None if seen is None else seen[:, :n_ids])  # (b,)
        chosen_log_probs = logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=-1)
        for i, token, log_prob in zip(rows, chosen.tolist(), chosen_log_probs.tolist(), strict=True):
            if not ended[i]:
                tokens[i].append(token)
                log_probs[i].append(log_prob)
                ends = watch(i, tokens[i]) if watch is not None else False
                stopped[i] = ends or token in stop_ids
                ended[i] = stopped[i] or len(tokens[i]) == limits[i]
        running = [row for row, i in enumerate(rows) if not ended[i]]
        if not running:
            return [Continuation(*result) for result in zip(tokens, log_probs, stopped, strict=True)]
        if seen is not None:
            seen.scatter_(1, chosen.unsqueeze(1), True)
        if 2 * len(running) <= len(rows):  # copying the cache pays once half of the work is for nothing
            kept = torch.tensor(running, device=chosen.device)
            sequences.keep(kept)
            chosen, rows = chosen[kept], [rows[row] for row in running]
            seen = None if seen is None else seen[kept]
        logits = sequences.read_token(chosen)


class PaddedBatch:
    """Rows of the cache one below another, their ends aligned after `padding` (b, 1) positions that nobody looks at."""

    def __init__(self, model: InferenceModel, cache: dict[str, KeyValueCache], *, length: int, padding: Tensor) -> None:
        """`length`: positions of the cache that are filled."""
        self.model = model
        self.cache = cache
        self.length = length
        self.padding = padding
        self.is_padded = bool(padding.any())

    @torch.inference_mode()
    def read_token(self, tokens: Tensor) -> Tensor:
        """Logits (b, v) fp32 after one more token (b,) in each sequence."""
        earlier, self.length = self.length, self.length + 1
        mask = None
        if self.is_padded:
            mask = (torch.arange(self.length, device=tokens.device) >= self.padding)[:, None, None, :]  # (b, 1, 1, s)
        return self.model.next_logits(
            ForwardInputs(tokens.unsqueeze(1), earlier - self.padding, mask, self.cache, earlier)
        )

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence but these (n,), in this order."""
        self.padding = self.padding[rows]
        for layer in self.cache.values():
            layer.keep(rows)


@torch.inference_mode()
def read_prompts(
    model: InferenceModel, prompts: Sequence[Sequence[int]], *, capacity: int, filler: int = 0
) -> tuple[PaddedBatch, Tensor]:
    """The prompts in a cache of so many positions, and the logits (b, v) fp32 after them. `filler`: the token that
    stands where a prompt is shorter than others, which leaves no trace."""
    device, width = model.device, max(map(len, prompts))
    tokens = torch.tensor([[filler] * (width - len(p)) + list(p) for p in prompts], device=device)  # (b, w)
    padding = torch.tensor([width - len(p) for p in prompts], device=device).unsqueeze(1)  # (b, 1)
    sequences = PaddedBatch(model, model.make_cache(capacity), length=width, padding=padding)
    place = torch.arange(width, device=device)
    mask = None
    if sequences.is_padded:
        is_key = (place >= padding)[:, None, None, :]  # (b, 1, 1, w)
        # Padding may look at itself: attention with nothing to see is NaN in some kernels, and would spread.
        mask = (place <= place[:, None]) & (is_key | (place == place[:, None]))  # (b, 1, w, w)
    positions = (place - padding).clamp(min=0)  # (b, w)
    return sequences, model.next_logits(ForwardInputs(tokens, positions, mask, sequences.cache))


def check_prompts(
    prompts: Sequence[Sequence[int]], *, n_ctx: int, max_new_tokens: int | Sequence[int], vocab_size: int
) -> None:
    """ConfigError unless every prompt can be continued by max_new_tokens, or its own number of them."""
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True), start=1):
        named = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if limit < 1:
            raise ConfigError(f"max_new_tokens = {limit} must be at least 1")
        if not prompt:
            raise ConfigError(f"{named} is empty; begin with at least one token, such as the end of a document")
        if len(prompt) + limit > n_ctx:
            room = n_ctx - len(prompt)
            fix = f"lower max_new_tokens to {room} or shorten the prompt" if room > 0 else "shorten the prompt"
            raise ConfigError(
                f"{named} has {len(prompt):,} tokens, which with max_new_tokens = {limit:,} is more "
                f"than the model's context of n_ctx = {n_ctx:,} tokens; {fix}"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            wrong = next(token for token in prompt if not 0 <= token < vocab_size)
            raise ConfigError(
                f"{named} holds token id {wrong}, but the model's vocabulary has ids 0 to {vocab_size - 1}; "
                "use the tokenizer that the model was trained with"
            )

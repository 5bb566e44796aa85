"""Generate tokens after prompts, with a key-value cache.

Prompts of different lengths form a padded batch: they are right-aligned, and the padding on the left is masked and has
no positions. Each sequence therefore gets the same logits as alone, to rounding.

Shapes: b sequences, w width of the longest prompt, s positions so far (padding included), v vocab_size, n rows kept.
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
from gpt.inference.sampling import choose, seen_tokens
from gpt.inference.sampling_settings import GREEDY, Sampling
from gpt.model.gpt import GPT

# Called after each new token with the prompt's index and its new tokens so far. True ends that prompt.
Watch = Callable[[int, list[int]], bool]


@dataclass(frozen=True)
class Continuation:
    """The new tokens of one prompt. If a stop id ended it, that id is the last token.

    `log_probs` are the model's, in nats: over the whole vocabulary at temperature 1, whatever the sampling.
    """

    tokens: list[int]
    log_probs: list[float]
    stopped: bool  # ended by a stop id or by `watch`, not by max_new_tokens


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
    """Generate tokens after every prompt (token ids) in one batch. Returns results in the order of the prompts.

    `max_new_tokens` and `seed` are for all prompts, or one for each. Each prompt has its own random stream, which
    starts from its own seed, or from `seed + i` for prompt i. It therefore gets the same tokens in a batch as alone
    with that seed. `n_ids` limits the choice to ids below it, for a tokenizer with fewer ids than the model's
    vocabulary. `watch` is called for each token. It can stream the tokens, and it can end a prompt. Runs on the model's
    device; all ranks of the model must call it.

    ConfigError: an empty prompt, an id outside the vocabulary, or a prompt longer than n_ctx - max_new_tokens.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    check_prompts(prompts, n_ctx=n_ctx, max_new_tokens=limits, vocab_size=model.vocab_size)
    if not prompts:
        return []
    capacity = max(map(len, prompts)) + max(limits) - 1
    batch, logits = read_prompts(as_model(model), prompts, capacity=capacity)
    return decode(
        batch,
        logits,
        prompts,
        limits=limits,
        seeds=seeds,
        sampling=sampling,
        stop_ids=stop_ids,
        n_ids=n_ids,
        watch=watch,
    )


class DecodingBatch(Protocol):
    """Sequences that grow by one token each per step."""

    def decode_step(self, tokens: Tensor) -> Tensor:
        """Append one token (b,) to each sequence. Returns the logits (b, v) fp32 after it."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Keep only the sequences at `rows` (n,), in this order."""
        ...


def decode(
    batch: DecodingBatch,
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
    """Generate tokens after prompts that are in the cache, from the logits (b, v) after them.

    Arguments as for `generate`, with one limit and one seed for each prompt.
    """
    random_streams = [random.Random(seed) for seed in seeds]
    tokens: list[list[int]] = [[] for _ in prompts]
    log_probs: list[list[float]] = [[] for _ in prompts]
    stopped, ended = [False] * len(prompts), [False] * len(prompts)
    seen = None
    if sampling.repetition_penalty != 1.0:
        seen = seen_tokens(prompts, vocab_size=logits.size(1), device=logits.device)
    prompt_of_row = list(range(len(prompts)))
    while True:
        uniform = torch.tensor([random_streams[i].random() for i in prompt_of_row]) if sampling.temperature else None
        chosen = choose(logits[:, :n_ids], sampling, uniform, seen=None if seen is None else seen[:, :n_ids])  # (b,)
        chosen_log_probs = logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=-1)
        for i, token, log_prob in zip(prompt_of_row, chosen.tolist(), chosen_log_probs.tolist(), strict=True):
            if not ended[i]:
                tokens[i].append(token)
                log_probs[i].append(log_prob)
                ends = watch(i, tokens[i]) if watch is not None else False
                stopped[i] = ends or token in stop_ids
                ended[i] = stopped[i] or len(tokens[i]) == limits[i]
        running = [row for row, i in enumerate(prompt_of_row) if not ended[i]]
        if not running:
            return [Continuation(*result) for result in zip(tokens, log_probs, stopped, strict=True)]
        if seen is not None:
            seen.scatter_(1, chosen.unsqueeze(1), True)
        if 2 * len(running) <= len(prompt_of_row):  # copying the cache pays off once half of the rows have ended
            kept = torch.tensor(running, device=chosen.device)
            batch.keep(kept)
            chosen, prompt_of_row = chosen[kept], [prompt_of_row[row] for row in running]
            seen = None if seen is None else seen[kept]
        logits = batch.decode_step(chosen)


class PaddedBatch:
    """A `DecodingBatch` with one cache row per sequence, right-aligned after `padding` (b, 1) masked positions."""

    def __init__(self, model: InferenceModel, cache: dict[str, KeyValueCache], *, length: int, padding: Tensor) -> None:
        """`length`: filled positions of the cache, padding included."""
        self.model = model
        self.cache = cache
        self.length = length
        self.padding = padding
        self.is_padded = bool(padding.any())

    @torch.inference_mode()
    def decode_step(self, tokens: Tensor) -> Tensor:
        positions = self.length - self.padding  # (b, 1)
        self.length += 1
        mask = None
        if self.is_padded:
            mask = (torch.arange(self.length, device=tokens.device) >= self.padding)[:, None, None, :]  # (b, 1, 1, s)
        return self.model.next_logits(ForwardInputs(tokens.unsqueeze(1), positions, mask, self.cache))

    def keep(self, rows: Tensor) -> None:
        self.padding = self.padding[rows]
        for layer in self.cache.values():
            layer.keep(rows)


@torch.inference_mode()
def read_prompts(
    model: InferenceModel, prompts: Sequence[Sequence[int]], *, capacity: int, filler: int = 0
) -> tuple[PaddedBatch, Tensor]:
    """Run the prompts through the model. Returns them in a cache of `capacity` positions, and the logits (b, v) fp32
    after them. `filler` is the padding token; it does not affect the result."""
    device, width = model.device, max(map(len, prompts))
    tokens = torch.tensor([[filler] * (width - len(p)) + list(p) for p in prompts], device=device)  # (b, w)
    padding = torch.tensor([width - len(p) for p in prompts], device=device).unsqueeze(1)  # (b, 1)
    batch = PaddedBatch(model, model.make_cache(capacity), length=width, padding=padding)
    column = torch.arange(width, device=device)
    mask = None
    if batch.is_padded:
        is_key = (column >= padding)[:, None, None, :]  # (b, 1, 1, w)
        # Padding attends to itself: a row without keys gives NaN in some kernels, and the NaN would spread.
        mask = (column <= column[:, None]) & (is_key | (column == column[:, None]))  # (b, 1, w, w)
    positions = (column - padding).clamp(min=0)  # (b, w)
    return batch, model.next_logits(ForwardInputs(tokens, positions, mask, batch.cache))


def check_prompts(
    prompts: Sequence[Sequence[int]], *, n_ctx: int, max_new_tokens: int | Sequence[int], vocab_size: int
) -> None:
    """Raise ConfigError unless every prompt has room for max_new_tokens, or for its own number of them."""
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True), start=1):
        named = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if limit < 1:
            raise ConfigError(f"max_new_tokens = {limit} is invalid: it must be at least 1.")
        if not prompt:
            raise ConfigError(f"{named} is empty. Give at least one token, such as the end-of-document token.")
        if len(prompt) + limit > n_ctx:
            room = n_ctx - len(prompt)
            fix = f"Lower max_new_tokens to {room} or shorten the prompt." if room > 0 else "Shorten the prompt."
            raise ConfigError(
                f"{named} has {len(prompt):,} tokens. With max_new_tokens = {limit:,} it exceeds the model's context "
                f"of n_ctx = {n_ctx:,} tokens. {fix}"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            wrong = next(token for token in prompt if not 0 <= token < vocab_size)
            raise ConfigError(
                f"{named} has token id {wrong}, but the model's vocabulary has ids 0 to {vocab_size - 1}. Use the "
                "tokenizer that the model was trained with."
            )

"""Continues token sequences with the model's own forward pass and a key-value cache; never trains and knows no text.

Shapes: b sequences, w width of the longest prompt, s positions so far (padding included), v vocab_size.
Prompts of different lengths are right-aligned; what fills the left is masked and has no position of its own, so a
sequence gets the numbers that it would get alone.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.model import GPT
from gpt.sampling import GREEDY, Sampling, choose, seen_tokens
from gpt.token_scores import token_scores

__all__ = [
    "GREEDY",
    "Continuation",
    "Decoder",
    "KeyValueCache",
    "Model",
    "OneDevice",
    "Rows",
    "Sampling",
    "as_model",
    "check_prompts",
    "choose",
    "decode",
    "generate",
    "make_cache",
]

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


class KeyValueCache:
    """Keys and values of one layer, (b, k, capacity, e), allocated once, at the first append."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (b, k, t, e) keys and values; returns all so far, (b, k, s, e), as views that a later append extends."""
        if self._k is None or self._v is None:
            shape = (*k.shape[:2], self.capacity, k.size(3))
            self._k, self._v = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.size(2)
        assert end <= self.capacity, f"{end} positions in a cache of {self.capacity}"
        self._k[:, :, self.length : end] = k
        self._v[:, :, self.length : end] = v
        self.length = end
        return self._k[:, :, :end], self._v[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence but these (n,), in this order."""
        if self._k is not None and self._v is not None:
            self._k, self._v = self._k[rows], self._v[rows]

    def spread(self, columns: Tensor, capacity: int) -> "KeyValueCache":
        """A cache of n sequences, which holds for each its own `columns` (n, w) of this one's only sequence."""
        assert self._k is not None
        assert self._v is not None
        result = KeyValueCache(capacity)
        result.append(self._k[0][:, columns].transpose(0, 1), self._v[0][:, columns].transpose(0, 1))
        return result

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        assert length <= self.length, f"{length} positions of {self.length}"
        self.length = length


def make_cache(model: GPT, capacity: int) -> dict[str, KeyValueCache]:
    """An empty cache for each layer that `model` holds, by layer name, as `GPT.forward` takes it."""
    return {name: KeyValueCache(capacity) for name in model.blocks}


class Model(Protocol):
    """What generation and evaluation ask of a model; parallel/generation.py has one over many ranks.

    A call reads tokens (b, t) that go on from the `earlier` ones in the cache: `positions` (b, t) or (1, t), `mask` and
    `cache` are as in `GPT.forward`. Places are numbers row * t + column in those tokens.

    Each of `data_size` data ranks has a whole model and may ask it what others do not; the ranks of one ask alike.
    """

    vocab_size: int
    device: torch.device
    data_rank: int
    data_size: int

    def gather(self, values: list[Any]) -> list[list[Any]]:
        """Every data rank's values, by data rank; every rank calls it."""
        ...

    def make_cache(self, capacity: int) -> dict[str, KeyValueCache]:
        """Empty caches of the layers held here, by layer name."""
        ...

    def next_logits(
        self,
        tokens: Tensor,
        *,
        earlier: int,
        positions: Tensor,
        mask: Tensor | None,
        cache: Mapping[str, KeyValueCache],
        places: Tensor | None = None,
    ) -> Tensor:
        """Logits (n, v) fp32 after the tokens at `places` (n,), or (b, v) after the last of each row."""
        ...

    def log_probs(
        self,
        tokens: Tensor,
        *,
        earlier: int,
        positions: Tensor,
        mask: Tensor | None,
        cache: Mapping[str, KeyValueCache] | None,
        places: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability, fp32 (n,), of each of `targets` (n,) after the token at its place, and whether it is the
        likeliest, bool (n,). `places` rise and may repeat; none are asked when the tokens are only to be cached."""
        ...


class OneDevice:
    """A whole GPT on one device, as a Model."""

    def __init__(self, model: GPT) -> None:
        assert model.head is not None
        self.model = model
        self.head = model.head
        self.vocab_size = model.vocab_size
        self.device = next(model.parameters()).device
        self.data_rank, self.data_size = 0, 1

    def gather(self, values: list[Any]) -> list[list[Any]]:
        return [values]

    def make_cache(self, capacity: int) -> dict[str, KeyValueCache]:
        return make_cache(self.model, capacity)

    def next_logits(
        self,
        tokens: Tensor,
        *,
        earlier: int,
        positions: Tensor,
        mask: Tensor | None,
        cache: Mapping[str, KeyValueCache],
        places: Tensor | None = None,
    ) -> Tensor:
        hidden = self.model.hidden_states(tokens, positions=positions, mask=mask, cache=cache)
        asked = hidden[:, -1] if places is None else hidden.flatten(0, 1)[places]
        logits: Tensor = self.head(asked)  # the head is most of a small model: apply it where it is needed
        return logits[:, : self.vocab_size].float()

    def log_probs(
        self,
        tokens: Tensor,
        *,
        earlier: int,
        positions: Tensor,
        mask: Tensor | None,
        cache: Mapping[str, KeyValueCache] | None,
        places: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, Tensor]:
        hidden = self.model.hidden_states(tokens, positions=positions, mask=mask, cache=cache)
        return token_scores(hidden, self.head, places=places, targets=targets, vocab_size=self.vocab_size)


def as_model(model: GPT | Model) -> Model:
    """A GPT as a Model; what is one already stays."""
    return OneDevice(model) if isinstance(model, GPT) else model


def generate(
    model: GPT | Model,
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
    decoder = Decoder(model, prompts, capacity=max(map(len, prompts)) + max(limits) - 1)
    logits = decoder.read_prompts()
    return decode(
        decoder,
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


class Decoder:
    """A batch of sequences on their way through a model: the prompts first, then a token each at a time."""

    def __init__(self, model: GPT | Model, prompts: Sequence[Sequence[int]], *, capacity: int) -> None:
        self.model = as_model(model)
        self.device = self.model.device
        self.cache = self.model.make_cache(capacity)
        self.length = 0  # positions read so far
        width = max(map(len, prompts))
        self.prompts = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self.device)  # (b, w)
        self.padding = torch.tensor([width - len(p) for p in prompts], device=self.device).unsqueeze(1)  # (b, 1)
        self.is_padded = any(len(p) < width for p in prompts)

    @torch.inference_mode()
    def read_prompts(self) -> Tensor:
        """Logits after the prompts, (b, v) fp32."""
        place = torch.arange(self.prompts.size(1), device=self.device)  # (w,)
        mask = None
        if self.is_padded:
            is_key = (place >= self.padding)[:, None, None, :]  # (b, 1, 1, w)
            # Padding may look at itself: attention with nothing to see is NaN in some kernels, and would spread.
            mask = (place <= place[:, None]) & (is_key | (place == place[:, None]))  # (b, 1, w, w)
        positions = (place - self.padding).clamp(min=0)  # (b, w)
        return self._next_logits(self.prompts, positions, mask)

    @torch.inference_mode()
    def read_token(self, tokens: Tensor) -> Tensor:
        """Logits (b, v) fp32 after one more token (b,) in each sequence."""
        mask = None
        if self.is_padded:
            mask = (torch.arange(self.length + 1, device=self.device) >= self.padding)[:, None, None, :]  # (b, 1, 1, s)
        return self._next_logits(tokens.unsqueeze(1), self.length - self.padding, mask)

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence but these (n,), in this order."""
        self.padding = self.padding[rows]
        for layer in self.cache.values():
            layer.keep(rows)

    def _next_logits(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        earlier, self.length = self.length, self.length + tokens.size(1)
        return self.model.next_logits(tokens, earlier=earlier, positions=positions, mask=mask, cache=self.cache)


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

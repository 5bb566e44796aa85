"""Sample responses to prompts, batched continuously: a prompt takes the row of a sequence that has ended.

All sequences of a batch end at the same cache position. A new one is read on the side, and its keys and values are
copied to the end of the row that became free. When the cache is full, the positions that no sequence reaches back to
are dropped. Shapes: b rows, n new rows, w width of the longest new prompt, s positions so far, v vocab_size.
"""

import hashlib
import math
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.inference.generation import read_prompts
from gpt.inference.kv_cache import KeyValueCache
from gpt.inference.model import ForwardInputs, InferenceModel
from gpt.inference.sampling import choose
from gpt.inference.sampling_settings import Sampling

MIN_SLACK = 32  # cache positions besides those of the longest sequence: dropping positions copies the cache


@dataclass(frozen=True)
class SampledResponse:
    """The tokens that a policy wrote, and the log-probability of each in nats, at the sampler's temperature."""

    tokens: list[int]
    log_probs: list[float]
    ended: bool  # the last token is an end token; else the response was cut at its limit

    def extended(self, token: int, log_prob: float, *, ended: bool) -> "SampledResponse":
        """The response with one more token; it shares the lists. ConfigError: the policy's weights are not finite."""
        if not math.isfinite(log_prob):
            raise ConfigError(
                f"the policy gives the log-probability {log_prob} to the token that it chose: its weights are not "
                f"finite. Resume from an earlier checkpoint, with a lower optimizer.learning_rate"
            )
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        return SampledResponse(self.tokens, self.log_probs, ended)


def episode_seed(seed: int, episode: int) -> int:
    """The seed of an episode's random stream: a pure function of the run's seed and the episode's number."""
    return int.from_bytes(hashlib.blake2b(f"episode {seed} {episode}".encode(), digest_size=8).digest())


def sample_responses(
    model: InferenceModel,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    temperature: float,
    end_ids: Collection[int],
    max_new_tokens: Sequence[int],
    rows: int,
    n_ids: int | None = None,
    before_each: Callable[[], None] = lambda: None,
) -> list[SampledResponse]:
    """A response to each prompt (token ids), in the order of the prompts, from a batch of at most `rows` sequences.

    `max_new_tokens`: for each prompt. Each prompt has its own random stream. Equal logits therefore give equal tokens,
    in a batch of any size and on any layout. Temperature 0 takes the most likely token; log-probabilities are then
    those at temperature 1. `n_ids` limits the choice to ids below it. `before_each` is called before each step. All
    ranks of the model must call this. ConfigError: the model's logits are not finite.
    """
    if not prompts:
        return []
    streams = [random.Random(seed) for seed in seeds]
    drafts = [SampledResponse([], [], False) for _ in prompts]
    waiting = deque(range(len(prompts)))
    held = [waiting.popleft() for _ in range(min(rows, len(prompts)))]  # the prompt of each row
    runs = [True] * len(held)
    longest = max(len(prompt) + new for prompt, new in zip(prompts, max_new_tokens, strict=True))
    batch = ContinuousBatch(model, widest=max(map(len, prompts)), longest=longest)
    logits = batch.start([prompts[i] for i in held])
    while True:
        before_each()
        uniform = torch.tensor([streams[i].random() if live else 0.0 for i, live in zip(held, runs, strict=True)])
        chosen, chosen_log_probs = draw(logits, temperature=temperature, uniform=uniform, n_ids=n_ids)
        for row, (token, log_prob) in enumerate(zip(chosen.tolist(), chosen_log_probs.tolist(), strict=True)):
            if runs[row]:
                draft = drafts[held[row]] = drafts[held[row]].extended(token, log_prob, ended=token in end_ids)
                runs[row] = not draft.ended and len(draft.tokens) < max_new_tokens[held[row]]
        if not waiting and not any(runs):
            return drafts
        kept = [row for row, live in enumerate(runs) if live]
        if not waiting and 2 * len(kept) <= len(held):  # copying the cache pays off once half of the rows have ended
            index = torch.tensor(kept, device=chosen.device)
            batch.keep(index)
            chosen, held, runs = chosen[index], [held[row] for row in kept], [True] * len(kept)
        free = [row for row, live in enumerate(runs) if not live]
        entering = free[: len(waiting)]
        logits = batch.decode_step(chosen, blank=free[len(waiting) :])
        for row in entering:
            held[row], runs[row] = waiting.popleft(), True
        logits = batch.enter(entering, [prompts[held[row]] for row in entering], logits)


def draw(logits: Tensor, *, temperature: float, uniform: Tensor, n_ids: int | None) -> tuple[Tensor, Tensor]:
    """Choose a token for each row of logits (b, v). Returns the tokens (b,) and their log-probabilities (b,)."""
    chosen = choose(logits[:, :n_ids], Sampling(temperature), uniform)
    scaled = logits if temperature in (0.0, 1.0) else logits / temperature
    return chosen, scaled.gather(1, chosen.unsqueeze(1)).squeeze(1) - scaled.logsumexp(dim=-1)


class ContinuousBatch:
    """Sequences in one cache, one row each, that all end at the same position. See gpt.inference.generation.

    A model allocates its cache in or out of torch's inference mode. Rows are overwritten in it, which both allow, and
    copied out of it.
    """

    def __init__(self, model: InferenceModel, *, widest: int, longest: int) -> None:
        """`widest`: tokens of the longest prompt that will enter; `longest`: of the longest sequence."""
        self.model, self.widest = model, widest
        self.capacity = longest + max(MIN_SLACK, longest // 2)
        self.cache: dict[str, KeyValueCache] = {}
        self.start_of_row = torch.empty(0, 1, dtype=torch.int64)  # (b, 1), the first position of each sequence
        self.length = 0

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the first prompts. Returns the logits (b, v) fp32 after them."""
        width = max(map(len, prompts))
        filled = [*prompts, [0] * self.widest] if width < self.widest else list(prompts)  # a later prompt needs room
        batch, logits = read_prompts(self.model, filled, capacity=self.capacity)
        self.cache, self.length = batch.cache, batch.length
        self.start_of_row = batch.padding
        if len(filled) > len(prompts):
            self.keep(torch.arange(len(prompts), device=self.model.device))
        return logits[: len(prompts)]

    @torch.inference_mode()
    def decode_step(self, tokens: Tensor, *, blank: Sequence[int] = ()) -> Tensor:
        """Append one token (b,) to each sequence. Returns the logits (b, v) fp32 after it.

        The sequences at `blank` have ended and are forgotten; their rows stay in the batch.
        """
        if blank:
            self.start_of_row[list(blank)] = self.length
        if self.length == self.capacity:
            # A prompt that enters needs `widest` positions before the end, even where all sequences are shorter.
            self._drop(min(int(self.start_of_row.min()), self.length - self.widest))
        positions = self.length - self.start_of_row  # (b, 1)
        self.length += 1
        mask = (torch.arange(self.length, device=tokens.device) >= self.start_of_row)[:, None, None, :]  # (b, 1, 1, s)
        return self.model.next_logits(ForwardInputs(tokens.unsqueeze(1), positions, mask, self.cache))

    @torch.inference_mode()
    def enter(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
        """Replace the sequences at `rows` by prompts. Returns the logits (b, v), with those after the prompts."""
        if not rows:
            return logits
        width = max(map(len, prompts))
        batch, entered = read_prompts(self.model, prompts, capacity=width)
        index = torch.tensor(rows, device=logits.device)
        for name, layer in batch.cache.items():
            self.cache[name].replace_rows(index, layer)
        self.start_of_row[index] = self.length - width + batch.padding
        return logits.index_copy(0, index, entered)

    def keep(self, rows: Tensor) -> None:
        """Keep only the sequences at `rows` (n,), in this order."""
        self.start_of_row = self.start_of_row[rows]
        for layer in self.cache.values():
            layer.keep(rows)

    def _drop(self, n: int) -> None:
        assert n > 0, "the cache has room for the longest sequence"
        for layer in self.cache.values():
            layer.drop_first(n)
        self.start_of_row = self.start_of_row - n
        self.length -= n

"""Tokens a step as a function of tokens seen; knows nothing of ranks or micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from gpt.errors import ConfigError


class Level(NamedTuple):
    """Steps of one size: the first of them, the tokens seen before it, and the tokens of each."""

    first_step: int
    tokens_before: int
    step_tokens: int


@dataclass(frozen=True)
class BatchRamp:
    """`initial_tokens` a step at the start, `full_tokens` from `ramp_tokens` tokens on, linearly between the two in
    multiples of `increment_tokens` (arXiv 2005.14165, appendix B: 32k tokens to the full size over 4 to 12 billion).

    The number of steps, the tokens seen at each and so the place in the data follow from these four numbers alone.
    """

    full_tokens: int
    initial_tokens: int
    increment_tokens: int
    ramp_tokens: int

    def __post_init__(self) -> None:
        grows = self.full_tokens - self.initial_tokens
        if not 0 < self.initial_tokens <= self.full_tokens:
            raise ConfigError(
                f"batch.ramp_initial_tokens = {self.initial_tokens} must be from 1 to batch.global_batch_tokens = "
                f"{self.full_tokens}"
            )
        if self.increment_tokens < 1 or grows % self.increment_tokens:
            raise ConfigError(
                f"batch.ramp_increment_tokens = {self.increment_tokens} must divide the {grows} tokens between batch."
                f"ramp_initial_tokens = {self.initial_tokens} and batch.global_batch_tokens = {self.full_tokens}; "
                f"batch.global_batch_tokens = {self.full_tokens - grows % max(self.increment_tokens, 1)} would do"
            )
        if self.ramp_tokens < 0 or (grows and not self.ramp_tokens):
            raise ConfigError(f"batch.ramp_tokens = {self.ramp_tokens} must be a positive number of tokens")

    def levels(self) -> Iterator[Level]:
        """The sizes that occur, in order; the last goes on for ever."""
        step = tokens = 0
        size, grows = self.initial_tokens, self.full_tokens - self.initial_tokens
        while True:
            next_size = size + self.increment_tokens
            if size < self.full_tokens:  # the next size begins at its place on the line
                begins = -(-(next_size - self.initial_tokens) * self.ramp_tokens // grows)
                steps = max(0, -(-(begins - tokens) // size))
                if steps:
                    yield Level(step, tokens, size)
                step, tokens, size = step + steps, tokens + steps * size, next_size
            else:
                yield Level(step, tokens, size)
                return

    def step_tokens(self, step: int) -> int:
        """Tokens of step `step`, counted from 0."""
        return self._level(step).step_tokens

    def tokens_seen(self, step: int) -> int:
        """Tokens of all steps before `step`."""
        level = self._level(step)
        return level.tokens_before + (step - level.first_step) * level.step_tokens

    def steps_to(self, tokens: int) -> int:
        """The fewest steps that see at least so many tokens."""
        *_, level = (level for level in self.levels() if level.tokens_before <= max(tokens, 0))
        return level.first_step + max(0, -(-(tokens - level.tokens_before) // level.step_tokens))

    def _level(self, step: int) -> Level:
        *_, level = (level for level in self.levels() if level.first_step <= step)
        return level


def constant_batch(tokens: int) -> BatchRamp:
    """The same number of tokens in every step."""
    return BatchRamp(full_tokens=tokens, initial_tokens=tokens, increment_tokens=tokens, ramp_tokens=0)

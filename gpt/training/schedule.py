"""Learning rate and batch size as functions of the tokens seen."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gpt.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """The [schedule] section of a recipe: linear warm-up to the peak, then `shape` (arXiv 2005.14165, appendix B).

    `cosine` and `linear` fall from the end of the warm-up to `final_fraction` of the peak, reached when `decay_tokens`
    are seen in all, and stay there.
    """

    warmup_tokens: int = field(metadata={"rule": True})
    """Tokens over which the learning rate rises linearly to its peak. By default 2% of `decay_tokens`, at most 375
    million (GPT-3)."""
    decay_tokens: int | None = field(default=None, metadata={"rule": True})
    """Tokens, counted from the start of training, at which the decay ends. `train.total_tokens` by default. `constant`
    has none."""
    final_fraction: float = 0.1
    """Learning rate after the decay / peak."""
    shape: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """The curve after the warm-up. `cosine` (GPT-3) and `linear` fall at once; `wsd` stays at the peak and falls
    linearly at the end (arXiv 2404.06395); `constant` stays."""
    cooldown_tokens: int | None = None
    """Tokens of the fall of `wsd`, before `decay_tokens`."""

    def __post_init__(self) -> None:
        if self.warmup_tokens < 0:
            raise ConfigError(f"schedule.warmup_tokens = {self.warmup_tokens} is invalid: must not be negative")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ConfigError(f"schedule.final_fraction = {self.final_fraction} is invalid: must lie between 0 and 1")
        for key, wanted in (("decay_tokens", self.shape != "constant"), ("cooldown_tokens", self.shape == "wsd")):
            value = getattr(self, key)
            if (value is not None) != wanted:
                rule = "which needs it" if wanted else "which does not use it: remove it"
                raise ConfigError(
                    f"schedule.{key} is {'missing' if wanted else value} with schedule.shape = '{self.shape}', {rule}"
                )
        if self.decay_tokens is not None and self.decay_tokens <= self.warmup_tokens:
            raise ConfigError(
                f"schedule.decay_tokens = {self.decay_tokens} is invalid: must be more than "
                f"schedule.warmup_tokens = {self.warmup_tokens}, where the decay starts"
            )
        if self.cooldown_tokens is not None and self.decay_tokens is not None:
            most = self.decay_tokens - self.warmup_tokens
            if not 0 < self.cooldown_tokens <= most:
                raise ConfigError(
                    f"schedule.cooldown_tokens = {self.cooldown_tokens} is invalid: must be from 1 to {most}, "
                    "the tokens between schedule.warmup_tokens and schedule.decay_tokens"
                )


def learning_rate(config: ScheduleConfig, peak: float, tokens_seen: int) -> float:
    """The learning rate of the step that takes training to `tokens_seen` tokens."""
    if tokens_seen < config.warmup_tokens:
        return peak * tokens_seen / config.warmup_tokens
    if config.decay_tokens is None:
        return peak
    begin = config.warmup_tokens if config.cooldown_tokens is None else config.decay_tokens - config.cooldown_tokens
    progress = min(1.0, max(0.0, (tokens_seen - begin) / (config.decay_tokens - begin)))
    share = 0.5 * (1.0 + math.cos(math.pi * progress)) if config.shape == "cosine" else 1.0 - progress
    return peak * (config.final_fraction + (1.0 - config.final_fraction) * share)


class Level(NamedTuple):
    """Steps of one size: the first step, the tokens seen before it, and the tokens of each step."""

    first_step: int
    tokens_before: int
    step_tokens: int


@dataclass(frozen=True)
class BatchRamp:
    """`initial_tokens` a step at the start, `full_tokens` from `ramp_tokens` tokens on, linearly between the two in
    multiples of `increment_tokens` (arXiv 2005.14165, appendix B: 32k tokens to the full size over 4 to 12 billion).

    The number of steps, the tokens seen at each, and so the position in the data follow from these four numbers alone.
    """

    full_tokens: int
    initial_tokens: int
    increment_tokens: int
    ramp_tokens: int

    def __post_init__(self) -> None:
        grows = self.full_tokens - self.initial_tokens
        if not 0 < self.initial_tokens <= self.full_tokens:
            raise ConfigError(
                f"batch.ramp_initial_tokens = {self.initial_tokens} is invalid: must be from 1 to "
                f"batch.global_batch_tokens = {self.full_tokens}"
            )
        if self.increment_tokens < 1 or grows % self.increment_tokens:
            raise ConfigError(
                f"batch.ramp_increment_tokens = {self.increment_tokens} is invalid: must divide the {grows} tokens "
                f"between batch.ramp_initial_tokens = {self.initial_tokens} and "
                f"batch.global_batch_tokens = {self.full_tokens}; "
                f"batch.global_batch_tokens = {self.full_tokens - grows % max(self.increment_tokens, 1)} would do"
            )
        if self.ramp_tokens < 0 or (grows and not self.ramp_tokens):
            raise ConfigError(f"batch.ramp_tokens = {self.ramp_tokens} is invalid: must be a positive number of tokens")

    def levels(self) -> Iterator[Level]:
        """The sizes that occur, in order. The last one has no end."""
        step = tokens = 0
        size, grows = self.initial_tokens, self.full_tokens - self.initial_tokens
        while True:
            next_size = size + self.increment_tokens
            if size < self.full_tokens:  # the next size begins where the line reaches it
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
        """The smallest number of steps that see at least `tokens` tokens."""
        *_, level = (level for level in self.levels() if level.tokens_before <= max(tokens, 0))
        return level.first_step + max(0, -(-(tokens - level.tokens_before) // level.step_tokens))

    def _level(self, step: int) -> Level:
        *_, level = (level for level in self.levels() if level.first_step <= step)
        return level


def constant_batch(tokens: int) -> BatchRamp:
    """The same number of tokens in every step."""
    return BatchRamp(full_tokens=tokens, initial_tokens=tokens, increment_tokens=tokens, ramp_tokens=0)

"""Learning rate as a function of tokens seen; never counts steps."""

import math
from dataclasses import dataclass

from gpt.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then a cosine down to `final_fraction` of the peak, then constant (arXiv 2005.14165, app. B)."""

    warmup_tokens: int
    decay_tokens: int  # tokens seen, from the start of training, when the floor is reached
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_tokens < 0:
            raise ConfigError(f"schedule.warmup_tokens = {self.warmup_tokens} must not be negative")
        if self.decay_tokens <= self.warmup_tokens:
            raise ConfigError(
                f"schedule.decay_tokens = {self.decay_tokens} must be more than "
                f"schedule.warmup_tokens = {self.warmup_tokens}, where the decay starts"
            )
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ConfigError(f"schedule.final_fraction = {self.final_fraction} must lie between 0 and 1")


def learning_rate(config: ScheduleConfig, peak: float, tokens_seen: int) -> float:
    """The rate for the step that takes training to `tokens_seen` tokens."""
    if tokens_seen < config.warmup_tokens:
        return peak * tokens_seen / config.warmup_tokens
    progress = min(1.0, (tokens_seen - config.warmup_tokens) / (config.decay_tokens - config.warmup_tokens))
    share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (config.final_fraction + (1.0 - config.final_fraction) * share)

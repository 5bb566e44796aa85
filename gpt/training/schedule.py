"""Learning rate as a function of tokens seen; never counts steps."""

import math
from dataclasses import dataclass
from typing import Literal

from gpt.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up to the peak, then `shape`, by default GPT-3's (arXiv 2005.14165, appendix B).

    `cosine` and `linear` fall from the end of the warm-up to `final_fraction` of the peak, reached when `decay_tokens`
    are seen in all, and stay there. `wsd` (warm-up, stable, decay: arXiv 2404.06395) stays at the peak and falls
    linearly over the last `cooldown_tokens` before `decay_tokens`. `constant` stays at the peak.
    """

    warmup_tokens: int
    decay_tokens: int | None = None  # seen from the start of training
    final_fraction: float = 0.1
    shape: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    cooldown_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.warmup_tokens < 0:
            raise ConfigError(f"schedule.warmup_tokens = {self.warmup_tokens} must not be negative")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ConfigError(f"schedule.final_fraction = {self.final_fraction} must lie between 0 and 1")
        for key, wanted in (("decay_tokens", self.shape != "constant"), ("cooldown_tokens", self.shape == "wsd")):
            value = getattr(self, key)
            if (value is not None) != wanted:
                rule = "which needs it" if wanted else "which does not use it: remove it"
                raise ConfigError(
                    f"schedule.{key} is {'missing' if wanted else value} with schedule.shape = '{self.shape}', {rule}"
                )
        if self.decay_tokens is not None and self.decay_tokens <= self.warmup_tokens:
            raise ConfigError(
                f"schedule.decay_tokens = {self.decay_tokens} must be more than "
                f"schedule.warmup_tokens = {self.warmup_tokens}, where the decay starts"
            )
        if self.cooldown_tokens is not None and self.decay_tokens is not None:
            most = self.decay_tokens - self.warmup_tokens
            if not 0 < self.cooldown_tokens <= most:
                raise ConfigError(
                    f"schedule.cooldown_tokens = {self.cooldown_tokens} must be from 1 to {most}, the tokens between "
                    f"schedule.warmup_tokens and schedule.decay_tokens"
                )


def learning_rate(config: ScheduleConfig, peak: float, tokens_seen: int) -> float:
    """The rate for the step that takes training to `tokens_seen` tokens."""
    if tokens_seen < config.warmup_tokens:
        return peak * tokens_seen / config.warmup_tokens
    if config.decay_tokens is None:
        return peak
    begin = config.warmup_tokens if config.cooldown_tokens is None else config.decay_tokens - config.cooldown_tokens
    progress = min(1.0, max(0.0, (tokens_seen - begin) / (config.decay_tokens - begin)))
    share = 0.5 * (1.0 + math.cos(math.pi * progress)) if config.shape == "cosine" else 1.0 - progress
    return peak * (config.final_fraction + (1.0 - config.final_fraction) * share)

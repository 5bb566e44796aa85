"""When a run saves and which checkpoints it keeps: the [checkpoint] section of a recipe; it writes nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from gpt.errors import ConfigError


@dataclass(frozen=True)
class Retention:
    """Which checkpoints outlive the next: the newest `last`, and every one whose step `for_ever` names."""

    last: int
    for_ever: Callable[[int], bool] = lambda step: False


@dataclass(frozen=True)
class CheckpointConfig:
    """Spans are in tokens, since tokens are the clock. `fast_directory` is the second tier: a fast disk of each node,
    written often and kept short, for restarts on the same layout."""

    every_tokens: int | None = None  # None: at the end only
    keep_last: int = 2
    keep_every_tokens: int | None = None  # a multiple of every_tokens: these are kept for ever
    in_background: bool = True  # training waits for the copy to host memory alone
    max_failures: int = 3  # saves in a row that may fail before the run ends
    fast_directory: str = ""
    fast_every_tokens: int | None = None

    def __post_init__(self) -> None:
        for key in ("every_tokens", "keep_last", "keep_every_tokens", "max_failures", "fast_every_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"checkpoint.{key} = {value} must be at least 1")
        if self.keep_every_tokens is not None:
            if self.every_tokens is None:
                raise ConfigError(
                    "checkpoint.keep_every_tokens needs checkpoint.every_tokens, of which it is a multiple"
                )
            if self.keep_every_tokens % self.every_tokens:
                below = self.keep_every_tokens // self.every_tokens * self.every_tokens
                raise ConfigError(
                    f"checkpoint.keep_every_tokens = {self.keep_every_tokens} must be a multiple of "
                    f"checkpoint.every_tokens = {self.every_tokens}; the nearest are {below} and "
                    f"{below + self.every_tokens}"
                )
        if bool(self.fast_directory) != (self.fast_every_tokens is not None):
            raise ConfigError(
                "checkpoint.fast_directory and checkpoint.fast_every_tokens belong together: give both, or neither"
            )

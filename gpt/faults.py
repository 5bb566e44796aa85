"""What a run puts up with before it ends: the [faults] section of a recipe; it mends nothing itself."""

from dataclasses import dataclass
from typing import Literal

from gpt.errors import ConfigError


@dataclass(frozen=True)
class FaultConfig:
    """A step whose loss or gradient is not finite changes nothing and is counted; `max_skipped_steps` in a row may
    pass. `on_damaged_data`: where a part of the token files is not what was written, end the run, or leave such samples
    out, up to `max_damaged_samples` in a run."""

    max_skipped_steps: int = 10
    on_damaged_data: Literal["stop", "skip"] = "stop"
    max_damaged_samples: int = 1000

    def __post_init__(self) -> None:
        if self.max_skipped_steps < 0:
            raise ConfigError(f"faults.max_skipped_steps = {self.max_skipped_steps} must not be negative")
        if self.max_damaged_samples < 1:
            raise ConfigError(
                f"faults.max_damaged_samples = {self.max_damaged_samples} must be at least 1; to allow none, set "
                f"faults.on_damaged_data = 'stop'"
            )


class CopiesDiffer(ConfigError):
    """Ranks hold different copies of one weight or moment: no setting is wrong, and a restart may well mend it."""

    exit_status = 1

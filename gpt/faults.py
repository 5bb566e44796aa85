"""What a run puts up with before it ends: the [faults] section of a recipe; it mends nothing itself."""

from dataclasses import dataclass
from typing import Literal

from gpt.errors import ConfigError


@dataclass(frozen=True)
class FaultConfig:
    """A step whose loss or gradient is not finite changes nothing and is counted; `max_skipped_steps` in a row may
    pass. `on_damaged_data`: end the run when a block of token files fails its checksum, or leave its samples out."""

    max_skipped_steps: int = 10
    on_damaged_data: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if self.max_skipped_steps < 0:
            raise ConfigError(f"faults.max_skipped_steps = {self.max_skipped_steps} must not be negative")


class CopiesDiffer(ConfigError):
    """Ranks hold different copies of one weight or moment: no setting is wrong, and a restart may well mend it."""

    exit_status = 1

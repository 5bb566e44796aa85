"""The [health] section of a recipe."""

from dataclasses import dataclass

from gpt.errors import ConfigError


@dataclass(frozen=True)
class HealthConfig:
    """The [health] section of a recipe: limits of time without progress, and intervals of comparisons between ranks."""

    watchdog: bool = True
    """Whether a run that makes no progress is ended, with the rank at fault named."""
    hang_timeout_s: float = 300.0
    """Seconds between two signs of progress. A step that took more than half of this gives the next one twice its time,
    at most first_step_timeout_s."""
    first_step_timeout_s: float = 1800.0
    """Seconds for everything before the first step, and for the first step, evaluation and generation of a process,
    which may compile."""
    saving_timeout_s: float = 1800.0
    """Seconds for a save, a rewind, or the writing of samples."""
    replica_check_every_steps: int = 0
    """Steps between two comparisons of the replicas of weights, in addition to one before each save. 0: none."""
    straggler_every_steps: int = 100
    """Steps between two measurements that find ranks slower than their peers. 0: none."""

    def __post_init__(self) -> None:
        if self.hang_timeout_s < 1:
            raise ConfigError(
                f"health.hang_timeout_s = {self.hang_timeout_s:g} is invalid: must be at least 1 second. "
                f"To turn the watchdog off, set health.watchdog = false"
            )
        for key in ("first_step_timeout_s", "saving_timeout_s"):
            value = getattr(self, key)
            if value < self.hang_timeout_s:
                raise ConfigError(
                    f"health.{key} = {value:g} is invalid: must be at least health.hang_timeout_s = "
                    f"{self.hang_timeout_s:g}"
                )
        for key in ("replica_check_every_steps", "straggler_every_steps"):
            if getattr(self, key) < 0:
                raise ConfigError(f"health.{key} = {getattr(self, key)} is invalid: must be at least 1, or 0 for never")

    def check_collective_timeout(self, collective_timeout_s: float) -> None:
        """Refuse a timeout of collectives that is not above hang_timeout_s: it would end the ranks first, and name
        none of them."""
        if self.watchdog and self.hang_timeout_s >= collective_timeout_s:
            raise ConfigError(
                f"health.hang_timeout_s = {self.hang_timeout_s:g} is invalid: must be below run.collective_timeout_s = "
                f"{collective_timeout_s:g}, or collectives time out before the hung rank is found. Use "
                f"run.collective_timeout_s = {2 * self.hang_timeout_s:.0f}, or health.watchdog = false"
            )

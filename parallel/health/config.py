"""The [health] section of a recipe."""

from dataclasses import dataclass

from gpt.errors import ConfigError


@dataclass(frozen=True)
class HealthConfig:
    """Limits of time without progress, after which the job ends for a restart, and intervals of comparisons.

    `hang_timeout_s` applies between two signs of progress. Everything before the first step, and each activity that a
    process does for the first time (step, evaluation, generation), may compile or open files and has
    `first_step_timeout_s`. A save, a rewind or the writing of samples is one long call and has `saving_timeout_s`.

    `replica_check_every_steps`: how often to compare the replicas of weights on several ranks, in addition to before
    each save. `straggler_every_steps`: how often to measure a step, to find ranks slower than their peers. 0: never.
    """

    watchdog: bool = True
    hang_timeout_s: float = 300.0
    first_step_timeout_s: float = 1800.0
    saving_timeout_s: float = 1800.0
    replica_check_every_steps: int = 0
    straggler_every_steps: int = 25

    def __post_init__(self) -> None:
        if self.hang_timeout_s < 1:
            raise ConfigError(
                f"health.hang_timeout_s = {self.hang_timeout_s:g} is invalid: must be at least 1 second, and longer "
                f"than any step. To turn the watchdog off, set health.watchdog = false"
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

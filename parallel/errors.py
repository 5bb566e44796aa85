"""Errors of checkpoints."""

from pathlib import Path

from gpt.errors import ConfigError, DiskFull


class CheckpointError(ConfigError):
    """A checkpoint could not be written, or is damaged; `path` and `reason` say which and why.

    It is a ConfigError so that commands end with the one line, and a class of its own so that a training loop
    can go on after a failed save.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both in `args`: DCP sends exceptions between ranks
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"checkpoint {self.path}: {self.reason}"


class NoRoomForCheckpoints(CheckpointError, DiskFull):
    """The disk is so full that a run cannot start on it."""

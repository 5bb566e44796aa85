"""Errors of checkpoints, and of messages between ranks."""

from pathlib import Path

from gpt.errors import ConfigError, DiskFull, MachineFault, one_line


class CheckpointError(ConfigError):
    """The checkpoint at `path` could not be written, or is damaged, for this `reason`.

    It is a ConfigError, so that a command ends with this one line. It has its own class, so that a training loop can
    continue after a failed save.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both in `args`: DCP sends exceptions between ranks
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return one_line(f"checkpoint {self.path}: {self.reason}")


class CheckpointFault(CheckpointError, MachineFault):
    """The disk or the network failed while a checkpoint was written or read. A later try may succeed."""


class NoRoomForCheckpoints(CheckpointFault, DiskFull):
    """The disk has too little space for the run to start."""


class ForgedMessage(Exception):
    """Data from the network that was not sealed with the secret of this job. It was not loaded.

    Neither a RuntimeError, which would count as a lost rank, nor a ConfigError, after which a failed save lets training
    continue: it ends the process, and a restart would meet it again.
    """

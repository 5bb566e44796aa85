"""Record metrics as TensorBoard's event files. A failure of its writer does not stop the run."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt.errors import import_extra

FLUSH_S = 30  # seconds until a value is on the disk


class TensorBoardRun:
    """Event files in a folder. After the first failure it warns once and records nothing more.

    `resume_step`: the step from which a run goes on; TensorBoard then hides what was recorded for later ones.
    ConfigError: the package tensorboard is not installed.
    """

    def __init__(self, directory: Path, *, resume_step: int | None, warn: Callable[[str], None]) -> None:
        import_extra("tensorboard", extra="tensorboard")
        self._directory = directory
        self._warn = warn
        self._writer: Any = None
        self._open(resume_step)

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """Record the values of a step."""
        try:
            for name, value in values.items():
                if self._writer is not None:
                    self._writer.add_scalar(name, value, step)
        except Exception as error:  # the writer can raise any error, and none may end the run
            self._give_up(error)

    def rewind(self, step: int) -> None:
        """Continue from an earlier step."""
        if self._writer is not None:
            self.finish()
            self._open(step)

    def finish(self) -> None:
        """Write everything and close the file."""
        try:
            if self._writer is not None:
                self._writer.close()
        except Exception as error:
            self._give_up(error)
        self._writer = None

    def _open(self, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # type: ignore[attr-defined]

        purge = None if resume_step is None else resume_step + 1
        try:
            self._writer = SummaryWriter(str(self._directory), purge_step=purge, flush_secs=FLUSH_S)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        writer, self._writer = self._writer, None
        with suppress(Exception):
            if writer is not None:
                writer.close()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        self._warn(f"TensorBoard's files in {self._directory} cannot be written ({reason}); the run continues without")

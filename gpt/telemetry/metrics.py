"""Record the metrics of a run: metrics.jsonl, Weights & Biases, TensorBoard, and lines on the console.

Rank 0 only. Nothing here communicates between ranks. A failure of W&B or TensorBoard does not stop the run.
"""

import errno
import json
import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from gpt.errors import ConfigError, file_error
from gpt.files.atomic import free_space
from gpt.files.line_file import LineFile
from gpt.telemetry.console import Console
from gpt.telemetry.event_log import ERRORS, WARNINGS, EventKind, event_line
from gpt.telemetry.superseded import SUPERSEDED, supersede_after
from gpt.telemetry.tensorboard import TensorBoardRun
from gpt.telemetry.wandb import WandbRun, WandbSettings

WandbMode = Literal["offline", "online", "disabled"]


@dataclass(frozen=True)
class MetricsConfig:
    """The [metrics] section of a recipe."""

    log_every_steps: int = 1
    """Steps between two lines of metrics.jsonl."""
    wandb: WandbMode = "offline"
    """Weights & Biases. Offline runs are uploaded with `wandb sync RUN/wandb/offline-run-*`.
    Online runs need `wandb login`."""
    wandb_project: str = "triaxial"
    """Name of the W&B project."""
    wandb_name: str = ""
    """Name of the W&B run. That of the run directory by default."""
    wandb_entity: str = ""
    """W&B user or team. That of the W&B account by default."""
    tensorboard: bool = False
    """Write TensorBoard's event files too: `tensorboard --logdir RUN/tensorboard`. Needs the extra tensorboard."""

    def __post_init__(self) -> None:
        if self.log_every_steps < 1:
            raise ConfigError(f"metrics.log_every_steps = {self.log_every_steps} is invalid: must be at least 1")
        if self.wandb != "disabled" and not self.wandb_project:
            raise ConfigError("metrics.wandb_project is empty. Give a project name, or set metrics.wandb = 'disabled'")


class MetricsWriter:
    """Writes the metrics of a run, as a context manager. Leaving it by an exception marks the W&B run as failed.

    `resume_step` is the step of the checkpoint from which the run resumes; None for a new run. Lines of metrics.jsonl
    after it move to metrics.superseded.jsonl, because these steps will be repeated. W&B keeps both versions in one run.
    The console shows `total_steps` and `total_tokens`. ConfigError: the files cannot be written.
    """

    def __init__(
        self,
        config: MetricsConfig,
        run_directory: Path,
        *,
        run_config: dict[str, Any],
        resume_step: int | None,
        interactive: bool | None = None,
        total_steps: int | None = None,
        total_tokens: int | None = None,
    ) -> None:
        self.config = config
        self.path = run_directory / "metrics.jsonl"
        self._run_directory = run_directory
        self._run_config = run_config
        self._resume_step = resume_step
        self._console = Console(total_steps=total_steps, total_tokens=total_tokens, interactive=interactive)
        self._files: dict[str, LineFile] = {}  # by name, opened at the first line
        self._had_trouble = False
        self._replaced: set[str] = set()  # files that another program replaced, already reported to the user
        self._wandb: WandbRun | None = None
        self._tensorboard: TensorBoardRun | None = None

    def __enter__(self) -> Self:
        try:
            self._run_directory.mkdir(parents=True, exist_ok=True)
            n_damaged = supersede_after(self.path, step=-1 if self._resume_step is None else self._resume_step)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self._add(self.path.name, b"")  # raises now if it cannot be written
        if n_damaged:
            lines = f"{n_damaged:,} damaged line{'s' if n_damaged > 1 else ''}"
            text = f"{lines} of {self.path} cannot be read; moved to {SUPERSEDED}. Check that disk"
            self.event("warning", step=self._resume_step or 0, text=text)
        if self.config.wandb != "disabled":
            self._wandb = WandbRun(
                WandbSettings(
                    directory=self._run_directory,
                    project=self.config.wandb_project,
                    entity=self.config.wandb_entity,
                    name=self.config.wandb_name or self._run_directory.resolve().name,
                    online=self.config.wandb == "online",
                    resume=self._resume_step is not None,
                    kept_elsewhere="the run continues without it; metrics.jsonl has every value (metrics.wandb = "
                    "'disabled' turns it off)",
                ),
                run_config=self._run_config,
                warn=self.message,
            )
        if self.config.tensorboard:
            self._tensorboard = TensorBoardRun(
                self._run_directory / "tensorboard", resume_step=self._resume_step, warn=self.message
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        with suppress(ConfigError):
            self._write_waiting()
        if trouble := self._trouble():
            self.message(f"{self._run_directory}: still {trouble}; records that waited in memory are lost")
        for file in self._files.values():
            file.close()
        self._console.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)
        if self._tensorboard is not None:
            self._tensorboard.finish()

    def due(self, step: int) -> bool:
        """Return whether to log this step. Check it before `log`, because reading a loss waits for the device."""
        return step % self.config.log_every_steps == 0

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """Record the values of a step: one line of JSON, one row of W&B, one line or row of the console.

        Steps must not decrease, except after `rewind`. Two calls for one step, for training and for an evaluation, give
        two lines. While the disk is full, records wait in memory. The console leaves out values of the run's health.
        ConfigError: the file cannot be written, or too much waits in memory.
        """
        assert self._files, "MetricsWriter is a context manager: log inside its `with`"
        plain = {key: _plain(value) for key, value in values.items()}
        record = {"step": step} | {key: value if math.isfinite(value) else str(value) for key, value in plain.items()}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        self._add(self.path.name, line)
        self._write_waiting()
        self._warn_of_replaced(step)
        if self._wandb is not None:
            self._wandb.log(step, plain)
        if self._tensorboard is not None:
            self._tensorboard.log(step, plain)
        self._console.step(step, plain)

    def message(self, text: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        self._console.message(text)

    def samples(self, step: int, prompts: Sequence[str], texts: Sequence[str]) -> None:
        """Print the texts that the model wrote at a step, and record them in W&B and TensorBoard.

        Each begins with its prompt. Both call them `sample/1`, `sample/2` and so on. In W&B they are values of a row: a
        table would leave a temporary file behind each time.
        """
        named = {f"sample/{number}": text for number, text in enumerate(texts, start=1)}
        for prompt, (name, text) in zip(prompts, named.items(), strict=True):
            self._console.sample(step, prompt, text)
            if self._tensorboard is not None:
                self._tensorboard.log_text(step, name, text)
        if self._wandb is not None:
            self._wandb.log(step, named)

    def event(self, kind: EventKind, *, step: int, text: str, **fields: Any) -> None:
        """Print an event of the run and write it to events.jsonl. ConfigError: the file cannot be written."""
        self._console.message(text, tone="error" if kind in ERRORS else "warning" if kind in WARNINGS else "")
        self._add("events.jsonl", event_line(kind, step=step, text=text, fields=fields))

    def append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Append a line of JSON for each record to a file of the run. ConfigError: the file cannot be written."""
        self._add(name, b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records))

    def _add(self, name: str, lines: bytes) -> None:
        file = self._files.setdefault(name, LineFile(self._run_directory / name))
        try:
            file.add(lines)
        except OSError as error:
            raise _cannot_write(file.path, error) from error

    def _write_waiting(self) -> None:
        for name in self._files:
            self._add(name, b"")
        trouble = self._trouble()
        if trouble and not self._had_trouble:
            self.message(f"{self._run_directory}: {trouble}; records wait in memory, and training continues")
        elif self._had_trouble and not trouble:
            self.message(f"{self._run_directory}: the disk takes records again; none is lost")
        self._had_trouble = bool(trouble)

    def _warn_of_replaced(self, step: int) -> None:
        for name in [name for name, file in self._files.items() if file.was_replaced and name not in self._replaced]:
            self._replaced.add(name)
            text = f"{self._run_directory / name} was replaced or deleted by another program. It is open again"
            self.event("warning", step=step, text=f"{text}; some records may be missing")

    def _trouble(self) -> str:
        """The reason for which lines wait in memory, or "" if none waits."""
        errors = [file.error for file in self._files.values() if file.is_waiting and file.error is not None]
        return (errors[0].strerror or str(errors[0])).lower() if errors else ""

    def rewind(self, step: int) -> None:
        """Continue from an earlier step: move the lines after it to metrics.superseded.jsonl."""
        file = self._files[self.path.name]
        self._add(self.path.name, b"")
        try:
            if file.is_waiting:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.close()
            supersede_after(self.path, step=step)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        if self._tensorboard is not None:
            self._tensorboard.rewind(step)


def _plain(value: Any) -> float | int:
    """Convert a number of numpy or torch to a Python number."""
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        return ConfigError(
            f"{path} was deleted, moved or replaced during training, so the run ends here. Put the run directory back "
            "and start the run again: it resumes from the newest checkpoint that is there"
        )
    return file_error(
        error,
        f"{path}: cannot be written ({error.strerror or error}; {free_space(path)}). Free space or choose another run "
        "directory, then start the run again: it resumes from its newest checkpoint",
    )

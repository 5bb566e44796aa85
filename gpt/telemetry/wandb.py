"""One run of the Weights & Biases client, whose failure never stops the work that it records."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file

ID_FILE = "wandb_run_id"  # in the run directory


@dataclass(frozen=True)
class WandbSettings:
    """Where a run is recorded and as what.

    `resume`: go on with the run whose id is kept in `directory`. `job_type` "" is training, whose id is kept there;
    another kind of job is a run of its own, in the group that bears the training run's id. `kept_elsewhere`: told to
    the user when the client fails.
    """

    directory: Path
    project: str
    entity: str
    name: str
    online: bool
    resume: bool
    kept_elsewhere: str
    job_type: str = ""


class WandbRun:
    """The first failure is told once, and from then on nothing more goes there."""

    def __init__(self, settings: WandbSettings, *, run_config: dict[str, Any], warn: Callable[[str], None]) -> None:
        self._settings = settings
        self._directory = settings.directory.resolve()
        self._run_config = run_config
        self._warn = warn
        self._run: Any = None
        try:
            run_id = self._run_id()
            self._run = self._start(run_id)
        except Exception as error:  # whatever the client raises: recording is a service to the run, not a condition
            self._give_up(error)

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """The values of a step, as a row."""
        # `step` is a metric and not W&B's own counter, which would refuse the steps taken again after a resume.
        self._log(lambda: {"step": step, **values})

    def log_table(self, step: int, name: str, *, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table under one name."""

        def row() -> dict[str, Any]:
            import wandb

            return {"step": step, name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])}

        self._log(row)

    def finish(self, *, exit_code: int) -> None:
        """Write what is still to be written; nothing may be logged after."""
        if self._run is not None:
            try:
                self._run.finish(exit_code=exit_code)
                return
            except Exception as error:
                self._give_up(error)
        with suppress(Exception):  # else the client's own hook at exit prints a traceback of what was told already
            import wandb

            wandb.teardown(exit_code=exit_code)

    def _log(self, make_row: Callable[[], dict[str, Any]]) -> None:
        if self._run is None:
            return
        try:
            self._run.log(make_row())
        except Exception as error:
            self._give_up(error)

    def _kept_id(self) -> str:
        path = self._directory / ID_FILE
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    def _run_id(self) -> str:
        """Of training the id kept in the run directory; a run from the start, and any other job, gets a new one."""
        if self._settings.resume and (kept := self._kept_id()):
            return kept
        run_id = secrets.token_hex(8)
        if not self._settings.job_type:
            replace_file(self._directory / ID_FILE, run_id + "\n")
        return run_id

    def _start(self, run_id: str) -> Any:
        if self._settings.online:
            try:
                return self._init(run_id, mode="online")
            except Exception as error:
                self._warn(
                    f"Weights & Biases could not be reached ({_one_line(error)}); recording offline under "
                    f"{self._directory / 'wandb'}: upload later with 'wandb sync'"
                )
                import wandb

                wandb.teardown(exit_code=1)  # the service still holds the run id of the failed start
        return self._init(run_id, mode="offline")

    def _init(self, run_id: str, *, mode: Literal["online", "offline"]) -> Any:
        import wandb  # takes a second, and only rank 0 needs it

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=60.0,
            finish_timeout=120.0,  # what is not uploaded by then stays on disk for `wandb sync`
            root_dir=str(self._directory),
            reinit="create_new",  # no process-wide current run
        )
        wandb.setup(settings=settings)
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise ConfigError("no API key is configured; run 'wandb login'")
        run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity or None,
            name=self._settings.name,
            id=run_id,
            group=(self._kept_id() or None) if self._settings.job_type else None,
            job_type=self._settings.job_type or None,
            resume="allow",
            mode=mode,
            config=self._run_config,
            settings=settings,
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._warn(f"Weights & Biases failed ({_one_line(error)}); {self._settings.kept_elsewhere}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

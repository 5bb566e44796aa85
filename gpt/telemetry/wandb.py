"""Record into one run of Weights & Biases. A failure of its client does not stop the work that it records."""

import atexit
import importlib
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.files.regular import read_text
from gpt.files.temporary import temporary_folder
from gpt.telemetry.client_thread import ClientThread, end_children

START_S = 150.0  # the client itself allows 60 s for each of two attempts
FINISH_S = {"online": 60.0, "offline": 20.0}  # the rest stays on disk for `wandb sync`
HELPER = "wandb-core"  # the name of the client's process
ID_FILE = "wandb_run_id"  # in the run directory


@dataclass(frozen=True)
class WandbSettings:
    """The location and name of a run's record.

    `resume`: continue the W&B run whose id is stored in `directory`. `job_type` "" is training; its id is stored there.
    Any other job becomes a separate W&B run, in a group named after the id of the training run. `kept_elsewhere`: where
    the values are if the client fails, for the warning. `patience_s`: a client that does not answer for so long has
    failed.
    """

    directory: Path
    project: str
    entity: str
    name: str
    online: bool
    resume: bool
    kept_elsewhere: str
    job_type: str = ""
    patience_s: float = 30.0


class WandbRun:
    """A W&B run. After the first failure it warns once and records nothing more.

    The client runs in a thread: if its process hangs, the caller waits for a limited time only.
    """

    def __init__(self, settings: WandbSettings, *, run_config: dict[str, Any], warn: Callable[[str], None]) -> None:
        self._settings = settings
        self._directory = settings.directory.resolve()
        self._run_config = run_config
        self._warn = warn
        self._client = ClientThread(patience_s=settings.patience_s)
        self._run: Any = None
        try:
            run_id = self._run_id()
            self._run = self._client.call(lambda: self._start(run_id), limit_s=START_S)
        except Exception as error:  # the client can raise any error, and none may end the run
            self._give_up(error)

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Record the values of a step as a row."""
        # `step` is a metric, because W&B's own counter refuses the steps that a resumed run repeats
        row = {"step": step, **values}
        self._log(lambda: row)

    def log_table(self, step: int, name: str, *, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table under a name."""
        data = [list(row) for row in rows]

        def row() -> dict[str, Any]:
            import wandb

            return {"step": step, name: wandb.Table(columns=list(columns), data=data)}

        self._log(row)

    def finish(self, *, exit_code: int) -> None:
        """Write everything and end the run. Nothing may be logged afterwards. Takes a limited time, see FINISH_S."""
        run, limit_s = self._run, FINISH_S["online" if self._settings.online else "offline"] + self._settings.patience_s
        if run is not None:
            try:
                self._client.call(lambda: run.finish(exit_code=exit_code), limit_s=limit_s)
                return
            except Exception as error:
                self._give_up(error)
        with suppress(Exception):  # otherwise the client prints the traceback of an already reported error at exit
            import wandb

            end = ClientThread(patience_s=self._settings.patience_s)
            end.call(lambda: wandb.teardown(exit_code=exit_code), limit_s=self._settings.patience_s)

    def _log(self, make_row: Callable[[], dict[str, Any]]) -> None:
        run = self._run
        if run is None:
            return
        try:
            self._client.post(lambda: run.log(make_row()))
        except Exception as error:
            self._give_up(error)

    def _stored_id(self) -> str:
        return self._stored()[0]

    def _stored(self) -> tuple[str, str, str]:
        """Return the id in the run directory, and the inode and path of the directory for which it was made.

        An empty string stands for a missing value: the id of a new run, the others in files of earlier versions.
        """
        path = self._directory / ID_FILE
        lines = read_text(path).splitlines() if path.exists() else []
        run_id, inode, directory, *_ = [*lines, "", "", ""]
        return run_id.strip(), inode, directory

    def _run_id(self) -> str:
        """Return the id in the run directory for a training that resumes, else a new one.

        A copy of a run directory gets a new one too: else it and the original would record into one W&B run. A moved
        directory keeps its inode, and one that is mounted elsewhere its inode or its path.
        """
        stored, inode, directory = self._stored()
        own_inode, own_directory = str(self._directory.stat().st_ino), str(self._directory)
        is_copy = bool(inode) and inode != own_inode and directory != own_directory
        resumes = self._settings.resume and stored and not is_copy
        run_id = stored if resumes else secrets.token_hex(8)
        if self._settings.job_type:
            return run_id
        if self._settings.resume and is_copy:
            self._warn(
                f"{self._directory} is a copy of {directory}: it records as a new Weights & Biases run, {run_id}, and "
                f"not as {stored}"
            )
        replace_file(self._directory / ID_FILE, f"{run_id}\n{own_inode}\n{own_directory}\n")
        return run_id

    def _start(self, run_id: str) -> Any:
        report_error = sys.excepthook
        try:
            return self._connect(run_id)
        finally:
            sys.excepthook = report_error  # that of the client prints an error with its secrets before it calls ours

    def _connect(self, run_id: str) -> Any:
        if self._settings.online:
            try:
                return self._init(run_id, mode="online")
            except Exception as error:
                self._warn(
                    f"Weights & Biases could not be reached ({_one_line(error)}); recording offline under "
                    f"{self._directory / 'wandb'}: upload later with 'wandb sync'"
                )
                import wandb

                wandb.teardown(exit_code=1)  # else the service keeps the id of the failed start in use
        return self._init(run_id, mode="offline")

    def _init(self, run_id: str, *, mode: Literal["online", "offline"]) -> Any:
        wandb = _import_client(self._directory / "wandb")
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=60.0,
            finish_timeout=FINISH_S[mode],
            root_dir=str(self._directory),
            reinit="create_new",  # no process-wide current run
        )
        wandb.setup(settings=settings)
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise ConfigError("no API key is configured. Run 'wandb login'")
        run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity or None,
            name=self._settings.name,
            id=run_id,
            group=(self._stored_id() or None) if self._settings.job_type else None,
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
        helper = ""
        if isinstance(error, TimeoutError) and (ended := end_children(HELPER)):
            helper = f" of its {', '.join(ended)}, which is ended"
        self._warn(f"Weights & Biases failed ({_one_line(error)}{helper}); {self._settings.kept_elsewhere}")


def _import_client(folder: Path) -> Any:
    """Import wandb, which takes a second; only rank 0 needs it.

    The import makes temporary folders, which would stay in the system's folder if this process is killed. They
    are made in a temporary folder of ours in `folder`, which the next start of the run removes.

    For that second, other threads make their temporary files there too, which is harmless: it stays until the process
    ends. wandb has no setting for these folders, which two of its modules make as they are loaded. The variable TMPDIR
    would also reach child processes, and has no effect once anything has asked for a temporary file.
    """
    if "wandb" not in sys.modules:
        before = tempfile.tempdir
        try:
            with suppress(OSError):  # such as a folder that is only for reading
                folder.mkdir(exist_ok=True)
                ours = ExitStack()
                tempfile.tempdir = str(ours.enter_context(temporary_folder(str(folder))).path)
                atexit.register(ours.close)  # and not at `finish`: a later W&B run of this process uses them too
            importlib.import_module("wandb")
        finally:
            tempfile.tempdir = before
    return importlib.import_module("wandb")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

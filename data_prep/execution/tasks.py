"""Define stages and tasks, and do one task in a worker process.

A worker writes and syncs a task's outputs under temporary names, different for each attempt. The process that holds the
work folder moves them into place. A worker that outlives its run, or that counts as lost, therefore cannot damage a
finished output.
"""

import dataclasses
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from data_prep.documents.counts import Counts
from data_prep.documents.quarantine import CUT_SHORT, FailureCount, quarantine_path
from data_prep.documents.shards import DamagedShardError
from data_prep.execution.damage import DamagedInput, WrittenFile, find_damage
from data_prep.execution.files import describe_file, disk_errors
from data_prep.execution.fingerprint import Fingerprint, differences, fingerprint
from gpt.errors import ConfigError
from gpt.files.atomic import sync_file
from gpt.files.json_text import decode_json

Paths = tuple[Path, ...]
NAMED_INPUTS = 3  # in a short request
_SETTLE_S = 60.0  # how long a network file system may show another machine an old state


@dataclass(frozen=True)
class TaskResult:
    """The report of a stage function: rows for the final table, and other facts to keep, as JSON values."""

    counts: list[Counts] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: `function(config, inputs, outputs)` reads its inputs and writes its outputs, no more.

    A change in the code that the function's module imports (comments apart), or in the version of an imported package,
    makes the stage's tasks run again. `packages` count besides the imported ones: an imported package relies on them.
    `ignored_packages` are imported but cannot change the output.
    """

    name: str
    function: Callable[[Any, Paths, Paths], TaskResult]
    packages: tuple[str, ...] = ()
    ignored_packages: tuple[str, ...] = ()

    def fingerprint(self) -> Fingerprint:
        """The code and the package versions that the output depends on, as this process finds them now."""
        return fingerprint(self.function, packages=self.packages, ignored_packages=self.ignored_packages)


@dataclass(frozen=True)
class Task:
    """One application of a stage. `config` is a frozen dataclass; the outputs lie in the work folder.

    `reads`: further files that the stage reads because an input names them, with their digests.
    """

    config: Any
    inputs: Paths
    outputs: Paths
    reads: tuple[WrittenFile, ...] = ()


@dataclass(frozen=True)
class FinishedTask:
    """A task's entry in the manifest. `elapsed_s`: seconds that its worker took.

    `quarantine`: the file with the documents on which it failed, and their number.
    """

    task: Task
    counts: list[Counts]
    facts: dict[str, Any]
    elapsed_s: float
    quarantine: tuple[Path, int] | None = None

    @classmethod
    def of(cls, task: Task, entry: dict[str, Any], folder: Path) -> "FinishedTask":
        """A task's entry in the manifest of a work folder, as an object."""
        aside = entry.get("quarantine")
        quarantine = None if aside is None else (folder / aside["path"], aside["documents"])
        counts = [Counts(**counts) for counts in entry["counts"]]
        return cls(task, counts, entry["facts"], entry["elapsed_s"], quarantine)

    def add_to(self, failures: FailureCount) -> None:
        """Count the documents that it read and those on which it failed."""
        n_documents = self.counts[0].documents_in if self.counts else int(self.facts.get("documents", 0))
        n_failed = 0 if self.quarantine is None else self.quarantine[1]
        cut_short = CUT_SHORT in self.facts
        failures.add(self.task.outputs[0], n_failed=n_failed, n_documents=n_documents, cut_short=cut_short)


@dataclass(frozen=True)
class TaskRequest:
    """A task on its way to a worker, which checks that it sees the same inputs and has the same code as the run.

    `n_bytes`: size of each input. `attempts`: the folder below which workers leave their outputs. `host`: of the run.
    `checks`: inputs that the worker compares with their digests. `listed`: a file of `list_inputs` with all inputs, if
    these are many. `task` and `n_bytes` then have the first few.
    """

    stage: Stage
    task: Task
    fingerprint: Fingerprint
    n_bytes: tuple[int, ...]
    folder: Path
    attempts: Path
    host: str
    listed: Path | None = None
    checks: tuple[WrittenFile, ...] = ()

    @property
    def name(self) -> str:
        """The task as errors and progress name it."""
        names = [path.name for path in self.task.inputs[:NAMED_INPUTS]]
        rest = len(self.task.inputs) - len(names)
        of = ", ".join(names) + (" and more" if self.listed else f" and {rest} more" if rest else "")
        return f"stage '{self.stage.name}' of {of or 'its source'}"


@dataclass(frozen=True)
class TaskOutcome:
    """The answer of a worker. `files`: size and digest of each output. `quarantine`: those of failed documents."""

    result: TaskResult
    outputs: Paths
    files: list[dict[str, Any]]
    elapsed_s: float
    host: str
    quarantine: dict[str, Any] | None = None


class Work(Protocol):
    """The interface between a pipeline and its work folder: `Workspace` runs the tasks, a plan only looks at them."""

    folder: Path
    stubs: Path  # the folder for the files that stand for remote inputs

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """Digest of each source file's content."""

    def run(self, stage: Stage, tasks: Sequence[Task]) -> list[FinishedTask]:
        """Do the tasks that the manifest lacks; return the entries of all, in the order of the tasks."""

    def say(self, line: str) -> None:
        """Print a line."""

    def check(self, paths: Sequence[Path]) -> None:
        """Compare files that this process reads itself with the digests of their tasks."""

    def write_note(self, name: str, text: str) -> None:
        """Keep a small file about the run in the folder, whole or not at all."""

    def find(self, steps: Callable[[], dict[str, Path]], shards: dict[str, Path], *, size: float) -> dict[str, Path]:
        """Call `steps`, which returns a file for each of the shards and depends on the findings of earlier stages.

        A plan that does not know those findings returns stand-ins for the files, with `size` times a shard's bytes.
        """

    def release(self, paths: Iterable[Path]) -> None:
        """Declare that no later stage of the run reads these outputs of earlier stages."""

    def run_once(self, function: Callable[[], None]) -> None:
        """Call `function`, which writes outside the folder: in one share of a run only, and in no plan."""

    def no_more_tasks(self) -> None:
        """Declare that no `run` follows; a plan ends here."""


def task_key(stage: str, fingerprint: Fingerprint, task: Task, inputs: Sequence[str], *, folder: Path) -> str:
    """Key of a task: equal keys mean equal outputs. `inputs`: their digests."""
    parts = {
        "stage": stage,
        **plain(fingerprint),
        # A recipe's 2.0 and a default 2 are equal values, so they must give the same text.
        "config": _whole_if_equal(plain(task.config)),
        "inputs": list(inputs),
        "outputs": [os.path.relpath(path, folder) for path in task.outputs],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _whole_if_equal(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: _whole_if_equal(item) for key, item in value.items()}
    return [_whole_if_equal(item) for item in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """A configuration as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def list_inputs(request: TaskRequest, folder: Path) -> Path:
    """Write a request's inputs to a file in `folder` that is named by its content; return its path.

    The inputs of a corpus's files are all shards: 10 MB of paths, which would go to each worker again for each file.
    """
    text = json.dumps({"paths": [str(path) for path in request.task.inputs], "bytes": request.n_bytes})
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.inputs"
    path.write_text(text, encoding="utf-8")
    return path


@lru_cache(1)
def _listed_inputs(path: Path) -> tuple[Paths, tuple[int, ...]]:
    """Read the paths and sizes that `list_inputs` wrote. Many tasks in a row have the same list."""
    about = decode_json(path.read_bytes())
    return tuple(map(Path, about["paths"])), tuple(about["bytes"])


def execute(request: TaskRequest) -> TaskOutcome | DamagedInput:
    """Do one task, in a worker; if one of its inputs is damaged, return that instead.

    ConfigError: a mistake of the user, a full disk, or code or inputs that differ from those of the run's process.
    """
    started = time.perf_counter()
    host = socket.gethostname()
    if request.listed is not None:
        inputs, n_bytes = _listed_inputs(request.listed)
        request = dataclasses.replace(request, task=dataclasses.replace(request.task, inputs=inputs), n_bytes=n_bytes)
    here = request.stage.fingerprint()
    if here != request.fingerprint:
        raise ConfigError(_different_installation(request, here, host))
    damaged = _check_inputs(request, host) or find_damage(request.checks)
    if damaged is not None:
        return DamagedInput(damaged)
    attempt = f"{host}-{os.getpid()}-{os.urandom(4).hex()}-"  # before each name: suffixes stay what they are
    finals = (request.attempts / path.relative_to(request.folder) for path in request.task.outputs)
    outputs = tuple(path.with_name(f"{attempt}{path.name}") for path in finals)
    folders = {path.parent for path in outputs}
    with disk_errors(request.folder):
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            result = request.stage.function(request.task.config, request.task.inputs, outputs)
            aside = quarantine_path(outputs[0])
            written = (*outputs, aside) if aside.exists() else outputs
            for path in written:
                with open(path, "rb+") as file:
                    sync_file(file)
            files = [describe_file(path) for path in written]
        except BaseException as error:
            for folder in folders:
                for path in folder.glob(f"{attempt}*"):
                    path.unlink(missing_ok=True)
            if isinstance(error, DamagedShardError):
                return DamagedInput(error.path)
            raise
    quarantine = None
    if len(files) > len(outputs):
        with open(aside, "rb") as lines:
            quarantine = {"documents": sum(1 for _ in lines), **files.pop()}
    return TaskOutcome(result, outputs, files, time.perf_counter() - started, host, quarantine)


def _check_inputs(request: TaskRequest, host: str) -> Path | None:
    """Return an input of the work folder that is missing or cut, or None; another machine may see inputs late."""
    deadline = time.monotonic() + (_SETTLE_S if host != request.host else 0.0)
    for path, n_bytes in zip(request.task.inputs, request.n_bytes, strict=True):
        while (found := path.stat().st_size if path.is_file() else None) != n_bytes:
            if path.is_relative_to(request.folder) and host == request.host:
                return path
            if time.monotonic() > deadline:
                state = "does not exist" if found is None else f"has {found:,} bytes"
                raise ConfigError(
                    f"{request.name}: its input {path} of {n_bytes:,} bytes {state} on {host}; do not change inputs "
                    "during a run, and mount them at the same path on all machines"
                )
            time.sleep(1.0)
    return None


def _different_installation(request: TaskRequest, here: Fingerprint, host: str) -> str:
    changed = ", ".join(differences(request.fingerprint, here))
    return (
        f"{request.name}: the worker on {host} has another installation than the run ({changed}). Install "
        "the same on every machine, and change nothing during a run"
    )

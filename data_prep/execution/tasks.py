"""What stages and tasks are, what their output depends on, and how a worker does one; never decides what to do.

A worker leaves a task's outputs, synced, under names of the attempt's own. Who holds the work folder moves them to
their place, so that a worker that outlives its run, or was given up for dead, can spoil nothing.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data_prep.documents.counts import Counts
from data_prep.execution.files import disk_errors, sync_file
from gpt.errors import ConfigError, import_extra

Paths = tuple[Path, ...]


_SETTLE_S = 60.0  # how long a network file system may show another machine an old state


@dataclass(frozen=True)
class Result:
    """What a stage function reports: rows for the final table, and anything else worth keeping, as JSON values."""

    counts: list[Counts] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: `function(config, inputs, outputs)` reads its inputs and writes its outputs, no more.

    `modules` (of data_prep, or dotted) and `packages` from the index are what its output depends on: a change in their
    code (comments apart) or version makes its tasks run again.
    """

    name: str
    function: Callable[[Any, Paths, Paths], Result]
    modules: tuple[str, ...]
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One application of a stage. `config` is a frozen dataclass; paths of outputs lie in the workspace."""

    config: Any
    inputs: Paths
    outputs: Paths


@dataclass(frozen=True)
class Finished:
    """A task's entry in the manifest, with the seconds that its worker took."""

    task: Task
    counts: list[Counts]
    facts: dict[str, Any]
    elapsed_s: float


@dataclass(frozen=True)
class About:
    """What the output of all tasks of a stage depends on beside their settings and inputs."""

    stage: str
    code: dict[str, str]  # module: digest of its code
    versions: dict[str, str]


@dataclass(frozen=True)
class Job:
    """A task on its way to a worker. `n_bytes`: of each input; `attempts`: below it workers leave their outputs."""

    stage: Stage
    task: Task
    about: About
    n_bytes: tuple[int, ...]
    folder: Path
    attempts: Path
    host: str

    @property
    def name(self) -> str:
        """What errors and progress call it."""
        names = [path.name for path in self.task.inputs[:3]]
        rest = len(self.task.inputs) - len(names)
        of = ", ".join(names) + (f" and {rest} more" if rest else "")
        return f"stage '{self.stage.name}' of {of or 'its source'}"


@dataclass(frozen=True)
class Outcome:
    """What a worker hands back: the result, where the outputs lie, their facts, and who did it for how long."""

    result: Result
    outputs: Paths
    files: list[dict[str, Any]]
    elapsed_s: float
    host: str


def execute(job: Job) -> Outcome:
    """Do one task in a worker. ConfigError: a mistake of the user, a full disk, other code or inputs than the run's."""
    started = time.perf_counter()
    host = socket.gethostname()
    _check_inputs(job, host)
    here = about(job.stage)
    if here != job.about:
        raise ConfigError(_differs(job, here, host))
    attempt = f"{host}-{os.getpid()}-{os.urandom(4).hex()}-"  # before each name: what a prefix joins stays joined
    finals = (job.attempts / path.relative_to(job.folder) for path in job.task.outputs)
    outputs = tuple(path.with_name(f"{attempt}{path.name}") for path in finals)
    folders = {path.parent for path in outputs}
    with disk_errors(job.folder):
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            result = job.stage.function(job.task.config, job.task.inputs, outputs)
            for path in outputs:
                with open(path, "rb+") as file:
                    sync_file(file)
            files = [describe(path) for path in outputs]
        except BaseException:
            for folder in folders:
                for path in folder.glob(f"{attempt}*"):
                    path.unlink(missing_ok=True)
            raise
    return Outcome(result, outputs, files, time.perf_counter() - started, host)


def _check_inputs(job: Job, host: str) -> None:
    """The inputs must be those of which the task's key was made; another machine may be late to see them."""
    deadline = time.monotonic() + (_SETTLE_S if host != job.host else 0.0)
    for path, n_bytes in zip(job.task.inputs, job.n_bytes, strict=True):
        while (found := path.stat().st_size if path.is_file() else None) != n_bytes:
            if time.monotonic() > deadline:
                is_there = "is not there" if found is None else f"has {found:,} bytes there"
                raise ConfigError(
                    f"{job.name}: its input {path} of {n_bytes:,} bytes {is_there}, on {host}; do not change inputs "
                    "during a run, and let all machines mount them at the same path"
                )
            time.sleep(1.0)


def _differs(job: Job, here: About, host: str) -> str:
    changed = [f"the code of {name}" for name in job.about.code if here.code.get(name) != job.about.code[name]]
    changed += [
        f"{name} {here.versions.get(name)} instead of {version}"
        for name, version in job.about.versions.items()
        if here.versions.get(name) != version
    ]
    return (
        f"{job.name}: the worker on {host} has another installation than the run ({', '.join(changed)}); install the "
        "same on every machine, and change nothing while a run is on"
    )


def about(stage: Stage) -> About:
    """What a stage's output depends on, as this process would find it now."""
    return About(stage.name, {name: _code_digest(name) for name in stage.modules}, versions(stage.packages))


def task_key(about: About, task: Task, inputs: list[str], folder: Path) -> str:
    """A task's key: equal keys, equal outputs. `inputs`: their digests."""
    parts = {
        **plain(about),
        "config": plain(task.config),
        "inputs": inputs,
        "outputs": [os.path.relpath(path, folder) for path in task.outputs],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """Size, time of change and digest of a file's content, for the manifest. ConfigError: it cannot be read."""
    xxhash = import_extra("xxhash", extra="data")
    digest = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            while block := file.read(1 << 20):
                digest.update(block)
    except PermissionError as error:  # of an input: what we wrote ourselves can be read
        raise ConfigError(f"{path}: {error.strerror}; this user must be able to read it") from None
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "digest": digest.hexdigest()}


def _code_digest(module: str) -> str:
    """Digest of a module's code without its comments and layout."""
    spec = importlib.util.find_spec(module if "." in module else f"data_prep.{module}")
    assert spec is not None, module
    assert spec.origin is not None, module
    stat = os.stat(spec.origin)
    return _parsed_digest(spec.origin, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(256)
def _parsed_digest(path: str, mtime_ns: int, n_bytes: int) -> str:
    """Of the file as it was at that time: workers ask for every task, and parsing takes as long as a small one."""
    tree = ast.parse(Path(path).read_bytes())
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Version of Python and of each package ("absent" if it is not installed)."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"  # the stage itself says so if it needs it
    return found


def plain(value: Any) -> Any:
    """A configuration as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class Work(Protocol):
    """What a pipeline asks of the work folder: of `Workspace`, which does the tasks, or of a plan, which only looks."""

    folder: Path
    stubs: Path  # the folder for what stands for remote inputs

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """Digest of each source file's content."""
        ...

    def run(self, stage: Stage, tasks: Sequence[Task]) -> list[Finished]:
        """Do the tasks that are not in the manifest; the entries of all, in the order of the tasks."""
        ...

    def note(self, name: str, text: str) -> None:
        """Keep a small file about the run in the folder, whole or not at all."""
        ...

    def find(self, steps: Callable[[], dict[str, Path]], shards: dict[str, Path], *, size: float) -> dict[str, Path]:
        """What `steps` returns: a file for each of the shards.

        Those steps depend on what earlier ones find. A plan that does not know it takes stand-ins for the files, with
        `size` times a shard's bytes.
        """
        ...

    def alone(self, function: Callable[[], None]) -> None:
        """Call `function`, which writes outside the folder: in one share of a run only, and in no plan."""
        ...

    def no_more_tasks(self) -> None:
        """Say that no `run` follows; what a plan is for ends here."""
        ...

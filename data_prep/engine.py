"""Stages as pure functions of files, and the manifest that says which of them are done; never looks into a document.

A task's key is a digest of its stage's code and libraries, its configuration and its inputs' content. Its function
writes under temporary names; they are synced, renamed and then entered in the manifest. Complete means entered: a file
that merely exists is written again, and a second run of the same work finds every key and does nothing.
"""

import ast
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.counts import Counts
from data_prep.files import disk_errors, lock_folder, sync_file, sync_folder
from data_prep.workers import LocalWorkers
from gpt.errors import import_extra

if TYPE_CHECKING:
    from data_prep.progress import Progress  # brings rich, which the workers, who import this file, do not need

MANIFEST = "manifest.jsonl"
Paths = tuple[Path, ...]


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
class _Job:
    stage: Stage
    task: Task


class Workspace:
    """A folder of intermediate files with its manifest and workers; one run at a time may hold it.

    with Workspace(folder, n_workers=2, progress=progress) as workspace:
        finished = workspace.run(STAGE, tasks)
    """

    def __init__(self, folder: Path, *, n_workers: int, progress: "Progress") -> None:
        self.folder = folder.resolve()
        self._progress = progress
        self._workers = LocalWorkers(n_workers)
        self._entries: dict[str, dict[str, Any]] = {}  # task key: its last entry
        self._digests: dict[str, dict[str, Any]] = {}  # path: {"bytes", "digest", "mtime_ns"}
        self._lock: int | None = None

    def __enter__(self) -> "Workspace":
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.folder)
            self._sweep()
            self._load()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()
        self._sweep()
        if self._lock is not None:
            os.close(self._lock)

    def run(self, stage: Stage, tasks: Sequence[Task]) -> list[Finished]:
        """Do the tasks that are not in the manifest; the entries of all, in the order of the tasks."""
        about_stage = {
            "stage": stage.name,
            "code": {name: _code_digest(name) for name in stage.modules},
            "versions": versions(stage.packages),
        }
        keys = [self._key(about_stage, task) for task in tasks]
        open_tasks = [i for i, key in enumerate(keys) if not self._is_done(key)]
        with self._progress.stage(stage.name, len(tasks), done_before=len(tasks) - len(open_tasks)) as advance:
            jobs = [_Job(stage, tasks[i]) for i in open_tasks]
            with disk_errors(self.folder):
                for folder in {output.parent for job in jobs for output in job.task.outputs}:
                    folder.mkdir(parents=True, exist_ok=True)
            for index, (result, files, elapsed_s) in self._workers.run(_execute, jobs, name=_job_name):
                self._enter(stage, tasks[open_tasks[index]], keys[open_tasks[index]], result, files, elapsed_s)
                advance(result.counts)
        return [self._finished(task, self._entries[key]) for task, key in zip(tasks, keys, strict=True)]

    def digest(self, path: Path) -> str:
        """Digest of a file's content; read once, then known by path, size and time of change."""
        known = self._digests.get(str(path))
        stat = path.stat()
        if known is not None and known["bytes"] == stat.st_size and known["mtime_ns"] == stat.st_mtime_ns:
            return str(known["digest"])
        facts = {"path": str(path), **_describe(path)}
        self._append({"file": facts})
        self._digests[str(path)] = facts
        return str(facts["digest"])

    def _key(self, about_stage: dict[str, Any], task: Task) -> str:
        parts = {
            **about_stage,
            "config": plain(task.config),
            "inputs": [self.digest(path) for path in task.inputs],
            "outputs": [os.path.relpath(path, self.folder) for path in task.outputs],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _is_done(self, key: str) -> bool:
        """In the manifest, and no other task has written to its outputs since."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        for output in entry["outputs"]:
            path = self.folder / output["path"]
            if not path.is_file() or self.digest(path) != output["digest"]:
                return False
        return True

    def _enter(
        self, stage: Stage, task: Task, key: str, result: Result, files: list[dict[str, Any]], elapsed_s: float
    ) -> None:
        outputs = []
        for path, facts in zip(task.outputs, files, strict=True):
            outputs.append({"path": os.path.relpath(path, self.folder), **facts})
            self._digests[str(path)] = facts
        entry = {
            "key": key,
            "stage": stage.name,
            "inputs": [{"path": str(path), "digest": self.digest(path)} for path in task.inputs],
            "outputs": outputs,
            "counts": [counts.as_dict() for counts in result.counts],
            "facts": result.facts,
            "elapsed_s": round(elapsed_s, 3),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(stage.packages),
        }
        self._append(entry)
        self._entries[key] = json.loads(json.dumps(entry, sort_keys=True))  # just as a later run will find it

    def _finished(self, task: Task, entry: dict[str, Any]) -> Finished:
        return Finished(task, [Counts(**counts) for counts in entry["counts"]], entry["facts"], entry["elapsed_s"])

    def _append(self, line: dict[str, Any]) -> None:
        path = self.folder / MANIFEST
        with disk_errors(path), open(path, "ab") as file:
            file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
            sync_file(file)

    def _load(self) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            return
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):  # a run died in the middle of a line: it counts for nothing
            data = data[: data.rfind(b"\n") + 1]
            os.truncate(path, len(data))
        for line in data.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # damaged: that task is done again
                continue
            if "file" in entry:
                self._digests[entry["file"]["path"]] = entry["file"]
                continue
            self._entries[entry["key"]] = entry
            for output in entry["outputs"]:
                self._digests[str(self.folder / output["path"])] = output

    def _sweep(self) -> None:
        """Remove what killed or failed tasks left under temporary names."""
        for path in self.folder.rglob(".*tmp-*"):
            path.unlink(missing_ok=True)


def _execute(job: _Job) -> tuple[Result, list[dict[str, Any]], float]:
    """Run one task in a worker: (its result, facts of each output, seconds)."""
    started = time.perf_counter()
    outputs = job.task.outputs
    temporary = tuple(path.with_name(f".tmp-{os.getpid()}-{path.name}") for path in outputs)
    with disk_errors(outputs[0] if outputs else Path.cwd()):
        try:
            result = job.stage.function(job.task.config, job.task.inputs, temporary)
            for path in temporary:
                with open(path, "rb+") as file:
                    sync_file(file)
            for path, final in zip(temporary, outputs, strict=True):
                os.replace(path, final)
            for folder in {path.parent for path in outputs}:
                sync_folder(folder)
        finally:
            for path in temporary:
                path.unlink(missing_ok=True)
    return result, [_describe(path) for path in outputs], time.perf_counter() - started


def _job_name(job: _Job) -> str:
    return f"stage '{job.stage.name}' of {', '.join(path.name for path in job.task.inputs[:3]) or 'its source'}"


def _describe(path: Path) -> dict[str, Any]:
    xxhash = import_extra("xxhash", extra="data")
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "digest": digest.hexdigest()}


def _code_digest(module: str) -> str:
    """Digest of a module's code without its comments and layout."""
    spec = importlib.util.find_spec(module if "." in module else f"data_prep.{module}")
    assert spec is not None, module
    assert spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_bytes())
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

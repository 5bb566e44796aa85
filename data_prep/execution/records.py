"""Decide which tasks are finished, and record new ones: move their outputs into place, then write the manifest line."""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.documents.quarantine import FOLDER, quarantine_path
from data_prep.execution.damage import WrittenFile
from data_prep.execution.files import describe_file, disk_errors
from data_prep.execution.fingerprint import Fingerprint
from data_prep.execution.manifest import Entry, WorkManifest, files_of
from data_prep.execution.tasks import (
    NAMED_INPUTS,
    FinishedTask,
    Stage,
    Task,
    TaskOutcome,
    TaskRequest,
    list_inputs,
    plain,
    task_key,
)
from gpt.files.atomic import sync_folder

MAX_LISTED_INPUTS = 32  # inputs that a task's own line, or its message to a worker, may list
_MAX_STATS = 10_000  # files of one folder to check one by one; if there are more, only the names are listed
_SYNC_S = 1.0  # a crash of the machine may lose this many seconds of work; an fsync per task would be slow


@dataclass
class _Inputs:
    """A task's inputs with their digests and sizes, and the name of their line in the manifest if they have one."""

    paths: tuple[Path, ...]
    digests: list[str]
    n_bytes: tuple[int, ...]
    name: str = ""
    written: list[WrittenFile] = field(default_factory=list)


def messages(requests: Sequence[TaskRequest], folder: Path) -> list[TaskRequest]:
    """The requests as workers get them: a file in `folder` lists the many inputs that several tasks have in common."""
    lists: dict[int, Path] = {}  # by the identity of the inputs, since comparing long lists takes time
    short = []
    for request in requests:
        if len(request.task.inputs) > MAX_LISTED_INPUTS:
            key = id(request.task.inputs)
            if key not in lists:
                lists[key] = list_inputs(request, folder)
            n = NAMED_INPUTS
            first = replace(request.task, inputs=request.task.inputs[:n])
            request = replace(request, task=first, n_bytes=request.n_bytes[:n], listed=lists[key])
        short.append(request)
    return short


class TaskRecords:
    """The finished tasks of a work folder. `open` comes before the first record, `close` after the last one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = WorkManifest(folder)
        self._renamed_in: set[Path] = set()  # folders to sync
        self._synced_at = 0.0
        self._damaged: set[Path] = set()  # outputs to make again
        self._trusted: set[Path] = set()  # folders of the outputs of this run's stages, which have been checked
        self._names: dict[Path, set[str]] = {}  # of the large ones of the current stage
        self._inputs: dict[int, _Inputs] = {}  # by identity, of the tasks of one stage: comparing long lists takes time

    def open(self, name: str) -> None:
        """Read all manifests of the folder; the one called `name` is ours to write."""
        self._manifest.open_own(name)
        self._manifest.refresh()

    def close(self) -> None:
        """Close the manifests."""
        self._manifest.close()

    def refresh(self) -> None:
        """Read the lines that other shares have added."""
        self._manifest.refresh()

    def keys(self, stage: Stage, fingerprint: Fingerprint, tasks: Sequence[Task]) -> list[str]:
        """Keys of a stage's tasks; reads each input whose digest is not known."""
        self._inputs.clear()
        sizes = Counter(path.parent for task in tasks for path in task.outputs)
        self._names = {folder: _names_in(folder) for folder, n in sizes.items() if n > _MAX_STATS}
        self._trusted -= sizes.keys()
        return [
            task_key(stage.name, fingerprint, task, self._inputs_of(task).digests, folder=self.folder) for task in tasks
        ]

    def input_bytes(self, task: Task) -> tuple[int, ...]:
        """Size of each input of a task."""
        return self._inputs_of(task).n_bytes

    def written_inputs(self, task: Task) -> list[WrittenFile]:
        """The inputs of a task with their digests; tasks with the same inputs get the same list."""
        inputs = self._inputs_of(task)
        if not inputs.written:
            inputs.written += map(WrittenFile, inputs.paths, inputs.digests)
        return inputs.written

    def is_finished(self, key: str) -> bool:
        """Return whether the manifest has the task, and no other task has written to its outputs since."""
        entry = self._manifest.entry(key)
        if entry is None:
            return False
        outputs = [(self.folder / output["path"], output["digest"]) for output in files_of(entry)]
        return all(path not in self._damaged and self._output_digest(path) == digest for path, digest in outputs)

    def distrust(self, paths: Iterable[Path]) -> None:
        """Count the tasks of these damaged outputs as not finished, until they have run again."""
        self._damaged.update(paths)

    def _output_digest(self, path: Path) -> str | None:
        names = self._names.get(path.parent)
        if names is None:
            return self._manifest.digest(path)
        is_there = path.name in names or self._manifest.may_be_missing(path)
        return self._manifest.recorded_digest(path) if is_there else None

    def trust_outputs(self, tasks: Sequence[Task]) -> None:
        """Do not check these finished outputs again as inputs of later stages of this run."""
        self._trusted.update(path.parent for task in tasks for path in task.outputs)

    def missing_inputs(self, tasks: Sequence[Task]) -> list[Path]:
        """Inputs of tasks that were removed to save space."""
        inputs = dict.fromkeys(path for task in tasks for path in task.inputs)
        return [path for path in inputs if self._manifest.may_be_missing(path) and not path.is_file()]

    def find_makers(
        self, history: Sequence[tuple[Stage, Sequence[Task]]], tasks: Sequence[Task]
    ) -> tuple[list[tuple[Stage, list[Task]]], list[Path]]:
        """Return the earlier tasks to run again because `tasks` need their removed outputs, stage by stage in order.

        Also return the removed files that only these earlier tasks need.
        """
        direct = self.missing_inputs(tasks)
        wanted = set(direct)
        again: list[tuple[Stage, list[Task]]] = []
        for stage, earlier in reversed(history if wanted else []):
            makers = [task for task in earlier if not wanted.isdisjoint(task.outputs)]
            if makers:
                wanted.update(self.missing_inputs(makers))
                again.append((stage, makers))
        return again[::-1], sorted(wanted.difference(direct))

    def remove(self, paths: Sequence[Path]) -> None:
        """Remove outputs of finished tasks; the tasks stay finished."""
        there = [path for path in paths if not self._manifest.may_be_missing(path)]
        if there:
            self._append({"removed": [os.path.relpath(path, self.folder) for path in there]})
            self.sync()  # first, so that after a crash every missing file is recorded as removed
        for path in paths:
            path.unlink(missing_ok=True)

    def finished(self, task: Task, key: str) -> FinishedTask:
        """The entry of a finished task."""
        entry = self._manifest.entry(key)
        assert entry is not None, key
        return FinishedTask.of(task, entry, self.folder)

    def digest(self, path: Path) -> str:
        """Digest of a file's content; read once, then known by path, size and time of change."""
        known = self._manifest.recorded_digest(path) if path.parent in self._trusted else self.known_digest(path)
        if known is None:
            facts = describe_file(path)
            self.add_file(path, facts)
            known = str(facts["digest"])
        return known

    def known_digest(self, path: Path) -> str | None:
        """Digest of a file that has not changed since it was read, else None."""
        return self._manifest.digest(path)

    def add_file(self, path: Path, facts: dict[str, Any]) -> None:
        """Record the size and the digest of an input file."""
        self._append({"file": {"path": str(path), **facts}})

    def add_task(self, request: TaskRequest, key: str, outcome: TaskOutcome) -> None:
        """Move a task's outputs into place and write its line."""
        outputs = []
        more: dict[str, Any] = {}
        with disk_errors(self.folder):
            for left, final, facts in zip(outcome.outputs, request.task.outputs, outcome.files, strict=True):
                os.replace(left, final)
                self._names.get(final.parent, set()).add(final.name)
                self._renamed_in.add(final.parent)
                outputs.append({"path": os.path.relpath(final, self.folder), **facts})
            aside = (
                self.folder / FOLDER / request.stage.name / f"{request.task.outputs[0].name.partition('.')[0]}.jsonl"
            )
            if outcome.quarantine is None:
                aside.unlink(missing_ok=True)  # of an earlier run
            else:
                aside.parent.mkdir(parents=True, exist_ok=True)
                os.replace(quarantine_path(outcome.outputs[0]), aside)
                self._renamed_in.add(aside.parent)
                more["quarantine"] = {"path": os.path.relpath(aside, self.folder), **outcome.quarantine}
        self._damaged.difference_update((*request.task.outputs, aside))
        code, config = request.fingerprint.code, plain(request.task.config)
        self._append(
            {
                "key": key,
                "stage": request.stage.name,
                "settings": self._shared_line({"of": request.stage.name, "code": code, "config": config}),
                "inputs": self._list_inputs(request.task),
                "input_bytes": sum(request.n_bytes),
                "outputs": outputs,
                "counts": [counts.as_dict() for counts in outcome.result.counts],
                "facts": outcome.result.facts,
                **more,
                "elapsed_s": round(outcome.elapsed_s, 3),
                "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "host": outcome.host,
                "versions": request.fingerprint.versions,
            }
        )

    def sync(self) -> None:
        """Sync renames before the manifest, so that no entry that survives a crash names a missing file."""
        with disk_errors(self.folder):
            for folder in self._renamed_in:
                sync_folder(folder)
        self._renamed_in.clear()
        self._manifest.sync()
        self._synced_at = time.monotonic()

    def _inputs_of(self, task: Task) -> _Inputs:
        """Digests and sizes of a task's inputs; tasks with the same inputs, which may be many, share them."""
        known = self._inputs.get(id(task.inputs))
        if known is None:
            digests = [self.digest(path) for path in task.inputs]
            known = _Inputs(task.inputs, digests, tuple(self._manifest.n_bytes(path) or 0 for path in task.inputs))
            self._inputs[id(task.inputs)] = known
        return known

    def _list_inputs(self, task: Task) -> list[dict[str, Any]] | str:
        """The inputs for a task's line: a list, or the name of a shared line if there are many."""
        known = self._inputs_of(task)
        if known.name:
            return known.name
        inputs = [
            {"path": str(path), "digest": digest, "bytes": n_bytes}
            for path, digest, n_bytes in zip(task.inputs, known.digests, known.n_bytes, strict=True)
        ]
        if len(inputs) <= MAX_LISTED_INPUTS:
            return inputs
        known.name = self._shared_line({"inputs": inputs})
        return known.name

    def _shared_line(self, facts: dict[str, Any]) -> str:
        """Name of a line with facts that several tasks have in common; written once."""
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        if not self._manifest.has_shared(name):
            self._append({"of_tasks": name, **facts})
        return name

    def _append(self, line: Entry) -> None:
        self._manifest.append(line)
        if time.monotonic() - self._synced_at > _SYNC_S:
            self.sync()


def _names_in(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()

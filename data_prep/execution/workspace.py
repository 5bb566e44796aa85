"""Run the tasks of stages in a work folder that remembers finished ones.

A task's key is a digest of its stage's code and libraries, its configuration and its inputs' content. A task counts as
finished once the manifest holds its key; an output file alone does not count and is written again. A second run of the
same work finds every key and does nothing.
"""

import hashlib
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.documents.quarantine import FailureCount, QuarantineConfig
from data_prep.execution.damage import (
    DamagedInput,
    T,
    WrittenFile,
    damaged_path,
    divide,
    repeat_until_whole,
    report_damage,
)
from data_prep.execution.files import describe_file, disk_errors, make_attempts, make_folders, remove_leftovers
from data_prep.execution.fingerprint import Fingerprint
from data_prep.execution.records import TaskRecords, messages
from data_prep.execution.shares import Share, ShareWatch, WorkFolderLock
from data_prep.execution.tasks import FinishedTask, Stage, Task, TaskRequest, execute
from data_prep.execution.workers import Executor, LocalWorkers
from gpt.errors import ConfigError

if TYPE_CHECKING:
    from data_prep.execution.progress import ProgressBars, StageProgress  # imports rich, which workers do not need

TEMPORARY = ".tmp"
SHARE_TIMEOUT_S = 3600.0


class Workspace:
    """A folder of intermediate files with its manifest and workers, for one run or for the shares of one run.

    with Workspace(folder, n_workers=2, progress=progress) as workspace:
        finished = workspace.run(STAGE, tasks)

    `executor(n_workers)` makes the object that does the tasks. With a `share` this run does its part of each stage and
    waits for the other parts; ConfigError if such a share shows no sign of life for `share_timeout_s`.
    Without `keep_intermediate`, files are removed when the pipeline releases them, and made again if a task needs them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        n_workers: int | None,
        progress: "ProgressBars",
        executor: Callable[[int | None], Executor] = LocalWorkers,
        share: Share | None = None,
        share_timeout_s: float = SHARE_TIMEOUT_S,
        quarantine: QuarantineConfig | None = None,
        keep_intermediate: bool = True,
    ) -> None:
        self.folder = folder.resolve()
        self.stubs = self.folder / "remote"
        self._progress = progress
        self._executor = executor(n_workers)
        self._share = share
        self._quarantine = quarantine or QuarantineConfig()
        self._share_timeout_s = share_timeout_s
        self._lock = WorkFolderLock(self.folder, share)
        self._attempts = self.folder / TEMPORARY / (self._lock.label or "run")
        self._records = TaskRecords(self.folder)
        self._watch: ShareWatch | None = None
        self._keep_intermediate = keep_intermediate
        self._history: list[tuple[Stage, Sequence[Task]]] = []  # of this run, to make removed files again
        self._step, self._stage, self._tasks = 0, "", ""  # for this run's status; see RunStatus
        self._steps_done = 0  # steps that this run has finished at least once

    def __enter__(self) -> "Workspace":
        with disk_errors(self.folder):
            make_folders([self.folder])
            self._lock.acquire()
            try:
                if self._share is not None:
                    self._watch = ShareWatch(self._lock, timeout_s=self._share_timeout_s)
                remove_leftovers(self.folder / TEMPORARY, self._attempts, alone=self._share is None)
                make_attempts(self._attempts)
                self._records.open(f"manifest{self._lock.label}.jsonl")
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._executor.close()
        remove_leftovers(self.folder / TEMPORARY, self._attempts, alone=self._share is None)
        try:
            self._records.sync()
            failed = str(error) or type(error).__name__ if error is not None else ""
            state = "failed" if failed else "done"
            self._lock.write_status(state, step=self._step, stage=self._stage, message=failed)
        except ConfigError:  # a full disk: if there is an error already, that is its cause
            if error is None:
                raise
        finally:
            self._records.close()
            self._lock.release()

    def run(self, stage: Stage, tasks: Sequence[Task]) -> list[FinishedTask]:
        """As `Work.run`."""
        self._step += 1
        self._stage = stage.name
        if self._share is not None:
            self._records.refresh()
        fingerprint = stage.fingerprint()
        keys = self._records.keys(stage, fingerprint, tasks)
        to_do = [i for i, key in enumerate(keys) if not self._records.is_finished(key)]
        own = [i for i in to_do if self._is_to_do_here(i)]
        self._tasks = hashlib.sha256("".join(keys).encode()).hexdigest()
        self._write_status("working")
        self._restore([tasks[i] for i in own])
        requests = self._requests(stage, fingerprint, [tasks[i] for i in own])
        with self._progress.stage(
            stage.name,
            n_tasks=len(tasks),
            n_done=len(tasks) - len(to_do),
            n_bytes=sum(sum(request.n_bytes) for request in requests),
            longest=self._executor.longest,
        ) as progress:
            self._execute(requests, [keys[i] for i in own], progress)
            others = {keys[i]: i for i in set(to_do) - set(own)}
            self._wait(others, self._records.is_finished, progress)
        self._steps_done = max(self._steps_done, self._step)
        self._records.trust_outputs(tasks)
        if not self._keep_intermediate:
            self._history.append((stage, tasks))
        finished = [self._records.finished(task, key) for task, key in zip(tasks, keys, strict=True)]
        failures = FailureCount(self._quarantine, self.folder, stage.name, n_tasks=len(finished))
        for task in finished:
            task.add_to(failures)
        failures.check()
        return finished

    def _requests(self, stage: Stage, fingerprint: Fingerprint, tasks: Sequence[Task]) -> list[TaskRequest]:
        """The requests for tasks, after a comparison of the inputs that they share."""
        shared, own = divide([self._records.written_inputs(task) for task in tasks], [task.reads for task in tasks])
        self._compare(shared, recorded={file.path for task in tasks for file in task.reads})
        where = (self.folder, self._attempts, socket.gethostname())
        return [
            TaskRequest(
                stage, replace(task, reads=()), fingerprint, self._records.input_bytes(task), *where, checks=files
            )
            for task, files in zip(tasks, own, strict=True)
        ]

    def _execute(self, requests: Sequence[TaskRequest], keys: Sequence[str], progress: "StageProgress") -> None:
        with disk_errors(self.folder):
            make_folders({output.parent for request in requests for output in request.task.outputs})
        name = requests[0].stage.name if requests else ""
        failures = FailureCount(self._quarantine, self.folder, name, n_tasks=len(requests))
        damaged = []
        jobs = messages(requests, self._attempts)
        for index, outcome in self._executor.run(execute, jobs, name=lambda request: str(request.name)):
            if isinstance(outcome, DamagedInput):
                damaged.append(outcome.path)
                continue
            self._records.add_task(requests[index], keys[index], outcome)
            self._records.finished(requests[index].task, keys[index]).add_to(failures)
            failures.check()
            progress.advance(outcome.result.counts, sum(requests[index].n_bytes))
        self._records.sync()
        report_damage(damaged, self.folder)

    def check(self, paths: Sequence[Path]) -> None:
        """As `Work.check`."""
        self._compare([WrittenFile(path, self._records.digest(path)) for path in paths])

    def _compare(self, files: Sequence[WrittenFile], recorded: Collection[Path] = ()) -> None:
        name = "comparison of {0.path} with its digest".format
        found = self._executor.run(damaged_path, files, name=name) if files else ()
        report_damage([path for _, path in found if path is not None], self.folder, recorded=recorded)

    def run_whole(self, steps: Callable[[], T]) -> T:
        """Call `steps`, which calls `run`. If it finds a damaged file, rebuild that file, and call `steps` again."""
        return repeat_until_whole(steps, self._start_again)

    def say(self, line: str) -> None:
        """As `Work.say`."""
        self._progress.say(line)

    def _start_again(self, damaged: Sequence[Path], line: str) -> None:
        self.say(line)
        self._records.distrust(damaged)
        self._step = 0
        self._history.clear()

    def _restore(self, tasks: Sequence[Task]) -> None:
        """Rebuild the removed inputs of tasks, and before them the inputs of those."""
        again, further = self._records.find_makers(self._history, tasks)
        for stage, makers in again:
            fingerprint = stage.fingerprint()
            keys = self._records.keys(stage, fingerprint, makers)
            requests = self._requests(stage, fingerprint, makers)
            n_bytes = sum(sum(request.n_bytes) for request in requests)
            name = f"{stage.name} (again)"
            with self._progress.stage(
                name, n_tasks=len(makers), n_done=0, n_bytes=n_bytes, longest=self._executor.longest
            ) as progress:
                self._execute(requests, keys, progress)
            self._records.trust_outputs(makers)
        if self._share is None:  # otherwise another share may be about to read them
            self._records.remove(further)

    def release(self, paths: Iterable[Path]) -> None:
        """As `Work.release`: in a run that keeps no intermediate files, the first share removes them."""
        if self._keep_intermediate or not self._is_own(0):
            return
        made = {path for _, tasks in self._history for task in tasks for path in task.outputs[:1]}
        self._records.remove([path for path in paths if path in made])

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """As `Work.digests`; the workers read the files whose digest is not known, once."""
        self._step += 1
        unknown = {str(path): i for i, path in enumerate(paths) if self._records.known_digest(path) is None}
        own = [Path(path) for path, i in unknown.items() if self._is_to_do_here(i)]
        if unknown:
            self._stage, self._tasks = "reading of inputs", ""
            self._write_status("working")
            with self._progress.stage(
                "inputs",
                n_tasks=len(paths),
                n_done=len(paths) - len(unknown),
                n_bytes=sum(path.stat().st_size for path in own),
                longest=self._executor.longest,
            ) as progress:
                for index, facts in self._executor.run(describe_file, own, name=lambda path: f"reading of {path}"):
                    self._records.add_file(own[index], facts)
                    progress.advance([], facts["bytes"])
                self._records.sync()
                others = {path: i for path, i in unknown.items() if not self._is_to_do_here(i)}
                self._wait(others, lambda path: self._records.known_digest(Path(path)) is not None, progress)
        self._steps_done = max(self._steps_done, self._step)
        return [self._records.digest(path) for path in paths]

    def write_note(self, name: str, text: str) -> None:
        """As `Work.write_note`."""
        temporary = self._attempts / name
        with disk_errors(self.folder / name):
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.folder / name)

    def find(self, steps: Callable[[], dict[str, Path]], shards: dict[str, Path], *, size: float) -> dict[str, Path]:
        """As `Work.find`."""
        return steps()

    def run_once(self, function: Callable[[], None]) -> None:
        """As `Work.run_once`: the first share calls the function."""
        if self._is_own(0):
            function()

    def no_more_tasks(self) -> None:
        """As `Work.no_more_tasks`: nothing to do."""

    def _is_own(self, index: int) -> bool:
        return self._share is None or self._share.owner(index) == self._share.number

    def _is_to_do_here(self, index: int) -> bool:
        """Return whether this run does an open task: its own, and a damaged one of a step that others have finished."""
        return self._step <= self._steps_done or self._is_own(index)

    def _wait(self, missing: dict[str, int], is_there: Callable[[str], bool], progress: "StageProgress") -> None:
        """Wait until the other shares have done what is `missing`: key or path to the index that tells its owner."""
        if not missing:
            return
        assert self._share is not None
        assert self._watch is not None
        self._write_status("waiting")
        pause_s = 0.02
        while True:
            self._records.refresh()
            there = [name for name in missing if is_there(name)]
            for name in there:
                del missing[name]
            owners = {self._share.owner(i) for i in missing.values()}
            waiting = f"waiting for {len(missing):,} of share {self._watch.describe(owners)}" if missing else ""
            progress.advance_others(len(there), waiting)
            if not missing:
                return
            self._watch.check(owners, step=self._step, tasks=self._tasks)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.2 + 0.05 * self._share.count)  # every share looks at the files of all shares

    def _write_status(self, state: str) -> None:
        self._lock.write_status(state, step=self._step, stage=self._stage, tasks=self._tasks)

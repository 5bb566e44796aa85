"""A work folder in which stages run, and the rules by which a task counts as done; never looks into a document.

A task's key is a digest of its stage's code and libraries, its configuration and its inputs' content. A worker writes
and syncs the outputs elsewhere; they are moved to their place and then entered in the manifest. Complete means entered:
a file that merely exists is written again, and a second run of the same work finds every key and does nothing.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.documents.counts import Counts
from data_prep.execution.files import disk_errors, sync_folder
from data_prep.execution.manifest import Entry, Manifest
from data_prep.execution.shares import Hold, Share, Watch
from data_prep.execution.tasks import (
    About,
    Finished,
    Job,
    Outcome,
    Paths,
    Result,
    Stage,
    Task,
    Work,
    about,
    describe,
    execute,
    plain,
    task_key,
    versions,
)
from data_prep.execution.workers import Executor, LocalWorkers
from gpt.errors import ConfigError

if TYPE_CHECKING:
    from data_prep.execution.progress import Follow, Progress  # brings rich, which the workers do not need

__all__ = ["Finished", "Result", "Stage", "Task", "Work", "Workspace", "plain", "versions"]

TEMPORARY = ".tmp"
SHARE_TIMEOUT_S = 3600.0
_LISTED_INPUTS = 32  # in a task's own line
_SYNC_S = 1.0  # what a crash of the machine may cost of the finished tasks; an fsync a task would slow small ones


class Workspace:
    """A folder of intermediate files with its manifest and workers; one run, or the shares of one run, may hold it.

    with Workspace(folder, n_workers=2, progress=progress) as workspace:
        finished = workspace.run(STAGE, tasks)

    `executor(n_workers)` makes what does the tasks. With a `share` this run does its part of each stage and waits for
    the others' parts; ConfigError when a share that it waits for shows no sign of life for `share_timeout_s`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        n_workers: int | None,
        progress: "Progress",
        executor: Callable[[int | None], Executor] = LocalWorkers,
        share: Share | None = None,
        share_timeout_s: float = SHARE_TIMEOUT_S,
    ) -> None:
        self.folder = folder.resolve()
        self.stubs = self.folder / "remote"
        self._progress = progress
        self._executor = executor(n_workers)
        self._share = share
        self._share_timeout_s = share_timeout_s
        self._hold = Hold(self.folder, share)
        self._attempts = self.folder / TEMPORARY / (self._hold.label or "run")
        self._manifest = Manifest(self.folder)
        self._watch: Watch | None = None
        self._renamed_in: set[Path] = set()  # folders to sync
        self._synced_at = 0.0
        self._inputs: dict[Paths, _Inputs] = {}  # of this stage's tasks
        self._step, self._stage, self._said = 0, "", ""  # what this run says of itself

    def __enter__(self) -> "Workspace":
        with disk_errors(self.folder):
            _make_folders([self.folder])
            self._hold.take()
            try:
                if self._share is not None:
                    self._watch = Watch(self._hold, timeout_s=self._share_timeout_s)
                self._sweep()
                self._attempts.mkdir(parents=True)
                self._manifest.open_own(f"manifest{self._hold.label}.jsonl")
                self._manifest.refresh()
            except BaseException:
                self._hold.release()
                raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._executor.close()
        self._sweep()
        try:
            self._sync()
            failed = str(error) or type(error).__name__ if error is not None else ""
            self._hold.say("failed" if failed else "done", step=self._step, stage=self._stage, message=failed)
        except ConfigError:  # a full disk, which is why we are here, if there is an error already
            if error is None:
                raise
        finally:
            self._manifest.close()
            self._hold.release()

    def run(self, stage: Stage, tasks: Sequence[Task]) -> list[Finished]:
        """As `Work.run`."""
        self._step += 1
        self._stage = stage.name
        if self._share is not None:
            self._manifest.refresh()
        what = about(stage)
        self._inputs.clear()
        keys = [task_key(what, task, self._inputs_of(task).digests, self.folder) for task in tasks]
        open_tasks = [i for i, key in enumerate(keys) if not self._is_done(key)]
        mine = [i for i in open_tasks if self._is_mine(i)]
        self._said = hashlib.sha256("".join(keys).encode()).hexdigest()
        self._say("working")
        jobs = [self._job(stage, tasks[i], what) for i in mine]
        with self._progress.stage(
            stage.name,
            n_tasks=len(tasks),
            n_done=len(tasks) - len(open_tasks),
            n_bytes=sum(sum(job.n_bytes) for job in jobs),
            longest=self._executor.longest,
        ) as follow:
            with disk_errors(self.folder):
                _make_folders({output.parent for job in jobs for output in job.task.outputs})
            for index, outcome in self._executor.run(execute, jobs, name=_name):
                self._enter(jobs[index], keys[mine[index]], outcome)
                follow.advance(outcome.result.counts, sum(jobs[index].n_bytes))
            self._sync()
            others = {keys[i]: i for i in set(open_tasks) - set(mine)}
            self._wait(others, self._is_done, follow)
        return [self._finished(task, key) for task, key in zip(tasks, keys, strict=True)]

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """As `Work.digests`; files that are not known are read by the workers, once."""
        self._step += 1
        unknown = {str(path): i for i, path in enumerate(paths) if self._manifest.digest(path) is None}
        mine = [Path(path) for path, i in unknown.items() if self._is_mine(i)]
        if unknown:
            self._stage, self._said = "reading of inputs", ""
            self._say("working")
            with self._progress.stage(
                "inputs",
                n_tasks=len(paths),
                n_done=len(paths) - len(unknown),
                n_bytes=sum(path.stat().st_size for path in mine),
                longest=self._executor.longest,
            ) as follow:
                for index, facts in self._executor.run(describe, mine, name=_reading):
                    self._append({"file": {"path": str(mine[index]), **facts}})
                    follow.advance([], facts["bytes"])
                self._sync()
                others = {path: i for path, i in unknown.items() if not self._is_mine(i)}
                self._wait(others, lambda path: self._manifest.digest(Path(path)) is not None, follow)
        return [self.digest(path) for path in paths]

    def digest(self, path: Path) -> str:
        """Digest of a file's content; read once, then known by path, size and time of change."""
        known = self._manifest.digest(path)
        if known is None:
            facts = {"path": str(path), **describe(path)}
            self._append({"file": facts})
            known = str(facts["digest"])
        return known

    def note(self, name: str, text: str) -> None:
        """As `Work.note`."""
        temporary = self._attempts / name
        with disk_errors(self.folder / name):
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.folder / name)

    def find(self, steps: Callable[[], dict[str, Path]], shards: dict[str, Path], *, size: float) -> dict[str, Path]:
        """As `Work.find`."""
        return steps()

    def alone(self, function: Callable[[], None]) -> None:
        """As `Work.alone`: the first share does it."""
        if self._is_mine(0):
            function()

    def no_more_tasks(self) -> None:
        """As `Work.no_more_tasks`: nothing to do."""

    def _is_mine(self, index: int) -> bool:
        return self._share is None or self._share.owner(index) == self._share.number

    def _is_done(self, key: str) -> bool:
        """In the manifest, and no other task has written to its outputs since."""
        entry = self._manifest.entry(key)
        if entry is None:
            return False
        outputs = [(self.folder / output["path"], output["digest"]) for output in entry["outputs"]]
        return all(path.is_file() and self.digest(path) == digest for path, digest in outputs)

    def _job(self, stage: Stage, task: Task, what: About) -> Job:
        n_bytes = self._inputs_of(task).n_bytes
        return Job(stage, task, what, n_bytes, self.folder, self._attempts, socket.gethostname())

    def _inputs_of(self, task: Task) -> "_Inputs":
        """What is known of a task's inputs; tasks that share many files share this too."""
        known = self._inputs.get(task.inputs)
        if known is None:
            digests = [self.digest(path) for path in task.inputs]
            known = _Inputs(digests, tuple(self._manifest.n_bytes(path) or 0 for path in task.inputs))
            self._inputs[task.inputs] = known
        return known

    def _enter(self, job: Job, key: str, outcome: Outcome) -> None:
        """Move a task's outputs to their place and write its line."""
        outputs = []
        with disk_errors(self.folder):
            for left, final, facts in zip(outcome.outputs, job.task.outputs, outcome.files, strict=True):
                os.replace(left, final)
                self._renamed_in.add(final.parent)
                outputs.append({"path": os.path.relpath(final, self.folder), **facts})
        settings = {"of": job.stage.name, "code": job.about.code, "config": plain(job.task.config)}
        self._append(
            {
                "key": key,
                "stage": job.stage.name,
                "settings": self._share_line(settings),
                "inputs": self._input_words(job.task),
                "input_bytes": sum(job.n_bytes),
                "outputs": outputs,
                "counts": [counts.as_dict() for counts in outcome.result.counts],
                "facts": outcome.result.facts,
                "elapsed_s": round(outcome.elapsed_s, 3),
                "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "host": outcome.host,
                "versions": job.about.versions,
            }
        )

    def _input_words(self, task: Task) -> list[dict[str, Any]] | str:
        """The inputs for the manifest; many of them as the name of a line that tasks share."""
        known = self._inputs_of(task)
        if known.name:
            return known.name
        words = [
            {"path": str(path), "digest": digest, "bytes": n_bytes}
            for path, digest, n_bytes in zip(task.inputs, known.digests, known.n_bytes, strict=True)
        ]
        if len(words) <= _LISTED_INPUTS:
            return words
        known.name = self._share_line({"inputs": words})
        return known.name

    def _share_line(self, facts: dict[str, Any]) -> str:
        """Name of a line with facts that several tasks have in common; written once."""
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        if not self._manifest.has_shared(name):
            self._append({"of_tasks": name, **facts})
        return name

    def _finished(self, task: Task, key: str) -> Finished:
        entry = self._manifest.entry(key)
        assert entry is not None, key
        return Finished(task, [Counts(**counts) for counts in entry["counts"]], entry["facts"], entry["elapsed_s"])

    def _wait(self, missing: dict[str, int], is_there: Callable[[str], bool], follow: "Follow") -> None:
        """Until the other shares have done what is `missing`: key or path, and index by which its owner is found."""
        if not missing:
            return
        assert self._share is not None
        assert self._watch is not None
        self._say("waiting")
        pause_s = 0.02
        while True:
            self._manifest.refresh()
            there = [name for name in missing if is_there(name)]
            for name in there:
                del missing[name]
            owners = {self._share.owner(i) for i in missing.values()}
            waiting = f"waiting for {len(missing):,} of share {self._watch.who(owners)}" if missing else ""
            follow.others(len(there), waiting)
            if not missing:
                return
            self._watch.check(owners, step=self._step, tasks=self._said)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.2 + 0.05 * self._share.count)  # all shares look at all shares' files

    def _say(self, state: str) -> None:
        self._hold.say(state, step=self._step, stage=self._stage, tasks=self._said)

    def _append(self, line: Entry) -> None:
        self._manifest.append(line)
        if time.monotonic() - self._synced_at > _SYNC_S:
            self._sync()

    def _sync(self) -> None:
        """Renames first: a line that tells of a file that is not there costs a task, not more, but why."""
        with disk_errors(self.folder):
            for folder in self._renamed_in:
                sync_folder(folder)
        self._renamed_in.clear()
        self._manifest.sync()
        self._synced_at = time.monotonic()

    def _sweep(self) -> None:
        """Remove what killed or failed tasks left: all of it when no other share can be at work."""
        if (self.folder / TEMPORARY).is_symlink():  # none of ours: attempts would be written to where it leads
            (self.folder / TEMPORARY).unlink()
        shutil.rmtree(self._attempts if self._share else self.folder / TEMPORARY, ignore_errors=True)
        with contextlib.suppress(OSError):  # of shares, the last one out removes it
            (self.folder / TEMPORARY).rmdir()
        if self._share is None:
            for path in self.folder.glob(".ray-probe-*"):
                path.unlink(missing_ok=True)


@dataclass
class _Inputs:
    """Digests and sizes of a task's inputs, and the name of their line in the manifest if they have one."""

    digests: list[str]
    n_bytes: tuple[int, ...]
    name: str = ""


def _make_folders(folders: Iterable[Path]) -> None:
    """Make folders, and make them last."""
    for folder in folders:
        missing = [place for place in (folder, *folder.parents) if not place.is_dir()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # as /proc and some remote file systems say it
            raise ConfigError(f"{folder}: this folder cannot be made; choose another") from None
        for place in reversed(missing):
            sync_folder(place.parent)


def _name(job: Any) -> str:
    return str(job.name)


def _reading(path: Any) -> str:
    return f"reading of {path}"

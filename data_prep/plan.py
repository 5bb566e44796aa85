"""Plan a run: walk a recipe's stages over the manifest, and find what is done and what is still to do.

Sizes and times of open tasks are estimated from the finished tasks of the same stage, in proportion to their input. If
there are none, they are unknown, and so are those of the stages that follow.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from data_prep.documents.counts import Counts, total
from data_prep.execution.files import describe_file
from data_prep.execution.manifest import Entry, WorkManifest
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.shares import ObservedRun, observe_runs
from data_prep.execution.tasks import FinishedTask, Stage, Task, task_key
from data_prep.filters.moderation import ModerationStage
from data_prep.inputs.input_lists import read_answers
from data_prep.pipeline import check, run_stages
from data_prep.readers.remote_files import STUB_ENDING, read_stub
from data_prep.recipe import PrepareConfig
from gpt.errors import ConfigError


@dataclass(frozen=True)
class StagePlan:
    """One stage: its tasks by state, the counts of finished ones, and the cost of the others, None where unknown.

    `n_stale` tasks were done before with other settings, code or inputs, or their outputs have changed since.
    """

    name: str
    n_tasks: int
    n_done: int
    n_stale: int
    counts: list[Counts]  # of the done tasks, one a step
    input_bytes: float | None  # of the tasks to do
    output_bytes: float | None
    work_s: float | None
    more_follow: bool = False  # between this stage and the next come others, which depend on its findings

    @property
    def n_to_do(self) -> int:
        """Tasks that the next run has to do."""
        return self.n_tasks - self.n_done


@dataclass(frozen=True)
class PlanOfRun:
    """The stages in order; those that depend on findings of others are missing until these are known."""

    stages: list[StagePlan]
    source_files: int
    source_bytes: int
    unread_files: int  # sources that are new or changed since they were read
    last_entry: Entry | None
    runs: list[ObservedRun]
    is_complete: bool  # no stage is missing
    typical_source: Path | None = None  # the local input of median size

    def elapsed_s(self, n_workers: int) -> float | None:
        """Estimated time of the run on `n_workers` workers; None if that of a stage is unknown."""
        parts = [
            0.0 if not stage.n_to_do else stage.work_s and stage.work_s / min(n_workers, stage.n_to_do)
            for stage in self.stages
        ]
        return None if any(part is None for part in parts) else sum(part for part in parts if part)


def plan(config: PrepareConfig, moderation: ModerationStage | None = None) -> PlanOfRun:
    """Plan a recipe with the content of its work folder. ConfigError: as a run raises it before its first task.

    Servers are asked for remote files that the last run did not ask for, and for no others.
    """
    folder = config.output.work_folder.resolve()
    found = check(config, known=read_answers(folder))
    manifest = WorkManifest(folder)
    manifest.refresh()
    with tempfile.TemporaryDirectory() as stubs:
        work = _Plan(folder, manifest, Path(stubs))
        try:
            run_stages(ShardRun(work), config, found, moderation)
        except (_EndOfPlanError, ConfigError, OSError, LookupError) as error:
            if not work.is_open and not isinstance(error, _EndOfPlanError):
                raise  # else the pipeline asked for a finding that an open stage does not have yet
        finally:
            manifest.close()
    stages = work.stages
    if stages and not work.is_at_end:
        stages[-1] = replace(stages[-1], more_follow=True)
    is_complete = not any(stage.more_follow for stage in stages)
    return PlanOfRun(
        stages,
        work.source_files,
        work.source_bytes,
        work.unread_files,
        work.last_entry,
        observe_runs(folder),
        is_complete,
        work.typical_source,
    )


class _EndOfPlanError(Exception):
    """No tasks follow, or the pipeline asked for a fact of an open task."""


class _Unknown:
    """Facts of an open task: asking for any of them ends the plan."""

    def __getitem__(self, name: str) -> Any:
        raise _EndOfPlanError(name)

    def __getattr__(self, name: str) -> Any:
        raise _EndOfPlanError(name)

    def __bool__(self) -> bool:
        return False


def _unknown(path: Path) -> str:
    """Stand-in for a digest: differs from every digest and from other paths' stand-ins, also in its first letters."""
    return f"?{hashlib.sha256(str(path).encode()).hexdigest()}"


def _source_bytes(path: Path) -> int:
    """Size of an input; for a remote one, the size that its server gives."""
    if path.suffix == STUB_ENDING:
        return read_stub(path).n_bytes or 0
    return path.stat().st_size if path.is_file() else 0


@dataclass
class _Rate:
    """Total cost of the finished tasks of a stage."""

    n_tasks: int = 0
    input_bytes: int = 0
    output_bytes: list[int] = field(
        default_factory=list
    )  # by position among the outputs, if all tasks have equally many
    work_s: float = 0.0

    def add(self, entry: Entry) -> None:
        sizes = [output["bytes"] for output in entry["outputs"]]
        if self.n_tasks and len(sizes) != len(self.output_bytes):
            each = sum(self.output_bytes) / max(1, len(sizes))
            self.output_bytes = [round(each)] * len(sizes)
        before = self.output_bytes or [0] * len(sizes)
        self.output_bytes = [a + b for a, b in zip(before, sizes, strict=True)]
        self.input_bytes += entry.get("input_bytes", 0)
        self.work_s += entry["elapsed_s"]
        self.n_tasks += 1

    def expect(self, input_bytes: float, n_outputs: int) -> tuple[list[float], float]:
        """Estimate (bytes of each output, seconds) of a task with this input."""
        scale = input_bytes / self.input_bytes if self.input_bytes else 1 / self.n_tasks
        if len(self.output_bytes) == n_outputs:
            return [scale * n for n in self.output_bytes], scale * self.work_s
        return [scale * sum(self.output_bytes) / max(1, n_outputs)] * n_outputs, scale * self.work_s


class _Plan:
    """An implementation of `Work` that reads the work folder and records what a run would do."""

    def __init__(self, folder: Path, manifest: WorkManifest, stubs: Path) -> None:
        self.folder, self.stubs = folder, stubs
        self.stages: list[StagePlan] = []
        self.source_files = self.source_bytes = self.unread_files = 0
        self.is_open = False  # some task is not done
        self.is_at_end = False  # no task follows
        self.last_entry: Entry | None = None
        self.typical_source: Path | None = None
        self._manifest = manifest
        self._rates: dict[str, _Rate] = {}
        self._to_make: dict[str, float | None] = {}  # outputs of open tasks, with their expected size
        for entry in manifest.entries():
            self._rates.setdefault(entry["stage"], _Rate()).add(entry)
            if self.last_entry is None or entry["finished_at"] >= self.last_entry["finished_at"]:
                self.last_entry = entry

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """Return known digests, and a stand-in for each file that a run would have to read."""
        sources = [path for path in paths if not path.is_relative_to(self.folder)]
        self.source_files += len(sources)
        local = sorted((path for path in sources if path.suffix != STUB_ENDING), key=_source_bytes)
        self.typical_source = local[len(local) // 2] if local else self.typical_source
        self.source_bytes += sum(_source_bytes(path) for path in sources)
        self.unread_files += sum(self._digest(path).startswith("?") for path in sources)
        return [self._digest(path) for path in paths]

    def run(self, stage: Stage, tasks: Sequence[Task]) -> list[FinishedTask]:
        """Record the stage; facts and counts of its tasks exist only if all are done."""
        fingerprint = stage.fingerprint()
        entries = [
            self._entry(
                task_key(
                    stage.name, fingerprint, task, [self._digest(path) for path in task.inputs], folder=self.folder
                )
            )
            for task in tasks
        ]
        to_do = [task for task, entry in zip(tasks, entries, strict=True) if entry is None]
        stale = [task for task in to_do if any(self._manifest.n_bytes(path) is not None for path in task.outputs)]
        self.is_open = self.is_open or bool(to_do)
        self.stages.append(
            StagePlan(
                stage.name,
                len(tasks),
                len(tasks) - len(to_do),
                len(stale),
                total(Counts(**counts) for entry in entries if entry is not None for counts in entry["counts"]),
                *self._expect(stage.name, to_do),
            )
        )
        if to_do:
            return [FinishedTask(task, [], cast(dict[str, Any], _Unknown()), 0.0) for task in tasks]
        return [
            FinishedTask.of(task, entry, self.folder)
            for task, entry in zip(tasks, entries, strict=True)
            if entry is not None
        ]

    def say(self, line: str) -> None:
        """Do nothing: the run prints it."""

    def check(self, paths: Sequence[Path]) -> None:
        """Do nothing: a plan starts no task again."""

    def write_note(self, name: str, text: str) -> None:
        """Do nothing: a plan writes nothing."""

    def find(self, steps: Callable[[], dict[str, Path]], shards: dict[str, Path], *, size: float) -> dict[str, Path]:
        """Return the files of the steps, or stand-ins, and record that stages are missing here."""
        try:
            return steps()
        except (_EndOfPlanError, ConfigError, OSError, LookupError):
            if not self.is_open:
                raise
        self.stages[-1] = replace(self.stages[-1], more_follow=True)
        found = {name: self.folder / f"?{len(self.stages)}" / name for name in shards}
        for name, path in found.items():
            expected = self._size(shards[name]) if size else 0.0
            self._to_make[str(path)] = None if expected is None else size * expected
        return found

    def release(self, paths: Iterable[Path]) -> None:
        """Do nothing: a plan removes nothing."""

    def run_once(self, function: Callable[[], None]) -> None:
        """Do nothing: a plan writes nothing."""

    def no_more_tasks(self) -> None:
        """End the plan."""
        self.is_at_end = True
        raise _EndOfPlanError

    def _entry(self, key: str) -> Entry | None:
        entry = self._manifest.entry(key)
        return entry if entry is not None and self._manifest.is_intact(entry) else None

    def _digest(self, path: Path) -> str:
        """Digest of a file, or a stand-in that no digest equals."""
        if str(path) in self._to_make:
            return _unknown(path)
        if path.parent == self.stubs:
            return str(describe_file(path)["digest"])
        return self._manifest.digest(path) or _unknown(path)

    def _expect(self, stage: str, tasks: Iterable[Task]) -> tuple[float | None, float | None, float | None]:
        """Estimate (bytes of inputs, bytes of outputs, seconds) of open tasks, and record the size of each output."""
        rate = self._rates.get(stage)
        read: float | None = 0.0
        written: float | None = 0.0
        work_s: float | None = 0.0
        for task in tasks:
            sizes = [self._size(path) for path in task.inputs]
            given = None if None in sizes else sum(size for size in sizes if size is not None)
            read = None if read is None or given is None else read + given
            if rate is None or given is None or written is None or work_s is None:
                written = work_s = None
                self._to_make.update((str(path), None) for path in task.outputs)
                continue
            outputs, task_s = rate.expect(given, len(task.outputs))
            written, work_s = written + sum(outputs), work_s + task_s
            self._to_make.update(zip(map(str, task.outputs), outputs, strict=True))
        return read, written, work_s

    def _size(self, path: Path) -> float | None:
        if str(path) in self._to_make:
            return self._to_make[str(path)]
        return path.stat().st_size if path.is_file() else self._manifest.n_bytes(path)

"""Apply stages to all shards of a run, sum up their counts, and record which files each step wrote."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.documents.counts import Counts, total
from data_prep.documents.losses import at_path
from data_prep.execution.tasks import FinishedTask, Stage, Task, Work
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json

Shards = dict[str, Path]  # the shard's file at this step, by a name that depends on the source file's content alone
STEPS_FILE = "steps.json"
SHARD_ENDING, TRACE_ENDING = ".jsonl.zst", ".dropped.jsonl.zst"

MUCH = 0.2  # of the documents or bytes that go into a step
_NO_TEXT = ("not_a_page", "not_html", "http_status")


@dataclass(frozen=True)
class Step:
    """A stage of a run that processed documents: where its shards (or web archives) and traces lie."""

    stage: str
    ending: str
    names: tuple[str, ...]

    def shards(self, folder: Path) -> list[Path]:
        """The shards that the step wrote, in the work folder `folder`."""
        return [folder / self.stage / f"{name}{self.ending}" for name in self.names]

    def traces(self, folder: Path) -> list[Path]:
        """The traces of the documents that it dropped, one for each of `shards`."""
        return [folder / self.stage / f"{name}{TRACE_ENDING}" for name in self.names]


class ShardRun:
    """One pass of a recipe over its shards, with the sums of what its stages report."""

    def __init__(self, workspace: Work) -> None:
        self.workspace = workspace
        self.counts: list[Counts] = []
        self.facts: dict[str, list[dict[str, Any]]] = {}  # stage: facts of its tasks
        self.seconds: dict[str, tuple[int, float]] = {}  # stage: (tasks, seconds of work)
        self.quarantined: dict[str, list[tuple[Path, int]]] = {}  # stage: files of failed documents, their number
        self._steps: list[Step] = []
        self._aside: dict[Path, list[Path]] = {}  # shard: failed documents of the stages that only read it

    def named(self, sources: Sequence[Path], form_of: Callable[[Path], str] | None = None) -> Shards:
        """Name source files by the digest of their content, and by the form in which they are read, if it is given.

        Other parts of their names and their order do not matter. Equal files count once; a line names them.
        """
        digests = self.workspace.digests(sources)
        named: Shards = {}
        twins = []
        for digest, path in zip(digests, sources, strict=True):
            name = digest[:16] if form_of is None else f"{digest[:16]}{form_of(path)}"
            if named.setdefault(name, path) != path:
                twins.append(f"{path} equals {named[name]}")
        if twins and form_of is not None:
            more = f", and {len(twins) - 1:,} more" if len(twins) > 1 else ""
            self.workspace.say(f"input.paths: equal files count once: {twins[0]}{more}")
        return dict(sorted(named.items()))

    def make(self, stage: Stage, configs: dict[str, Any], *, ending: str) -> list[Path]:
        """Run tasks without input, by name; each writes a file that ends in `ending`, and a trace."""
        step = Step(stage.name, ending, tuple(configs))
        outputs = zip(step.shards(self.workspace.folder), step.traces(self.workspace.folder), strict=True)
        self._run(
            stage, [Task(config, (), both) for config, both in zip(configs.values(), outputs, strict=True)], step=step
        )
        return step.shards(self.workspace.folder)

    def map(
        self,
        stage: Stage,
        config: Any,
        shards: Shards,
        *,
        extra_inputs: Shards | None = None,
        shared_inputs: tuple[Path, ...] = (),
    ) -> Shards:
        """Run one task a shard, which writes (shard, trace).

        The file of the same name in `extra_inputs`, if given, is the task's second input; `shared_inputs` follow. No
        later stage may read the files in `shards`. The files of failed documents come last; stages that only read a
        shard wrote them.
        """
        step = Step(stage.name, SHARD_ENDING, tuple(shards))
        after = dict(zip(shards, step.shards(self.workspace.folder), strict=True))
        traces = dict(zip(shards, step.traces(self.workspace.folder), strict=True))
        extra = {name: () if extra_inputs is None else (extra_inputs[name],) for name in shards}
        tasks = [
            Task(config, (path, *extra[name], *shared_inputs, *self._aside.get(path, ())), (after[name], traces[name]))
            for name, path in shards.items()
        ]
        self._run(stage, tasks, step=step)
        self.workspace.release(shards.values())
        return after

    def reduce(self, stage: Stage, config: Any, inputs: Sequence[Path], names: Sequence[str]) -> Shards:
        """Run one task over all shards that writes an array for each."""
        outputs = self.arrays(stage, names)
        self._run(stage, [Task(config, tuple(inputs), tuple(outputs.values()))])
        return outputs

    def finish(self) -> None:
        """Record that the run is complete and that the corpus was made of its last shards."""
        write_steps(self.workspace, self._steps, finished=True)

    def tasks(self, stage: Stage, tasks: Sequence[Task]) -> list[FinishedTask]:
        """Run any other tasks, and count them like the rest."""
        return self._run(stage, tasks)

    def arrays(self, stage: Stage, names: Sequence[str]) -> Shards:
        """Paths of arrays by name, in the stage's folder."""
        return {name: self.workspace.folder / stage.name / f"{name}.npy" for name in names}

    def _run(self, stage: Stage, tasks: Sequence[Task], *, step: Step | None = None) -> list[FinishedTask]:
        finished = self.workspace.run(stage, tasks)
        for task in finished:
            if task.quarantine is not None:
                self.quarantined.setdefault(stage.name, []).append(task.quarantine)
                if step is None:
                    self._aside.setdefault(task.task.inputs[0], []).append(task.quarantine[0])
        self.facts.setdefault(stage.name, []).extend(
            at_path(task.facts, task.task.inputs[0] if task.task.inputs else Path()) for task in finished if task.facts
        )
        n_tasks, elapsed_s = self.seconds.get(stage.name, (0, 0.0))
        elapsed_s += sum(task.elapsed_s for task in finished)
        self.seconds[stage.name] = (n_tasks + len(finished), elapsed_s)
        if step is not None:
            self._steps.append(step)
            write_steps(self.workspace, self._steps)
        rows = total(counts for task in finished for counts in task.counts)
        for row in rows:
            self.counts.append(row)
            if warning := loss_warning(row):
                self.workspace.say(warning)
        if empty := [row for row in rows if row.documents_out == 0]:
            raise ConfigError(_nothing_left(next((row for row in empty if row.documents_in), empty[0])))
        return finished


@dataclass(frozen=True)
class Steps:
    """The steps of a work folder's last run, in order, and whether that run is complete."""

    done: tuple[Step, ...]
    finished: bool


def write_steps(workspace: Work, steps: Sequence[Step], *, finished: bool = False) -> None:
    """Record the steps so far in a work folder, for `read_steps`."""
    rows = [{"stage": step.stage, "ending": step.ending, "names": step.names} for step in steps]
    workspace.write_note(STEPS_FILE, json.dumps({"finished": finished, "steps": rows}))


def read_steps(folder: Path) -> Steps:
    """Read the record of `write_steps`; ConfigError if it is missing or unreadable."""
    path = folder / STEPS_FILE
    try:
        about = decode_json(path.read_text(encoding="utf-8"))
        rows = tuple(Step(row["stage"], row["ending"], tuple(row["names"])) for row in about["steps"])
        return Steps(rows, bool(about["finished"]))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such file. Run `triaxial prepare` on this recipe first") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: damaged, or of an older version. Run `triaxial prepare` again") from None


def loss_warning(row: Counts) -> str:
    """Return a line with the rules of a step that dropped more than MUCH of its documents or bytes, "" if it did not.

    Records that were never text, such as the pictures of a web archive, do not count.
    """
    no_text = sum(row.dropped.get(reason, 0) for reason in _NO_TEXT)
    n_dropped, n_documents = sum(row.dropped.values()) - no_text, row.documents_in - no_text
    lost_bytes = row.bytes_in - row.bytes_out if row.step not in ("read", "extract") else 0  # a page has much markup
    share, byte_share = n_dropped / max(1, n_documents), lost_bytes / max(1, row.bytes_in)
    if max(share, byte_share) <= MUCH:
        return ""
    of_bytes = f" and {byte_share:.0%} of the bytes" if lost_bytes else ""
    reasons = [(reason, n) for reason, n in _by_number(row.dropped) if reason not in _NO_TEXT]
    rules = ", ".join(f"{reason} {n:,}" for reason, n in reasons[:3])
    return (
        f"warning: step '{row.step}' dropped {n_dropped:,} of {n_documents:,} documents ({share:.0%}){of_bytes}: "
        f"{rules or 'parts of documents'}. `triaxial prepare RECIPE --dropped {row.step}` shows them"
    )


def _by_number(dropped: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(dropped.items(), key=lambda item: (-item[1], item[0]))


def _nothing_left(row: Counts) -> str:
    if not row.documents_in:
        return f"step '{row.step}': there are no documents in the input"
    top = ", ".join(f"{reason} {n:,}" for reason, n in _by_number(row.dropped)[:3])
    return (
        f"step '{row.step}' left none of its {row.documents_in:,} documents (dropped: {top}); "
        f"loosen that step in the recipe or give other input. `triaxial prepare RECIPE --dropped {row.step}` shows them"
    )

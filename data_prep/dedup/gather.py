"""Gather the sorted rows of all shards into groups, and write the index by which later corpora find them.

A shard's task writes rows sorted by the value that documents are compared by. Gathering merges the rows of about as
many shards as there will be groups: S shards make sqrt(S) files. A task that compares a range of values therefore opens
sqrt(S) files and reads a slice of each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup.index import (
    ABOUT_ENDING,
    INDEX,
    MAX_ROWS,
    MAX_SHARDS,
    NOTES_ENDING,
    ROWS_ENDING,
    Group,
    Index,
    IndexedShard,
    Kind,
    in_shard,
    index_name,
    read_corpora,
)
from data_prep.dedup.sorted_rows import Limits, Range, RowSource, merge_sorted
from data_prep.execution.damage import WrittenFile
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import FinishedTask, Stage, Task, TaskResult
from gpt.errors import ConfigError

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class GatherTask:
    """Shards from number `first_shard` on, whose rows have these fields: (name, type)."""

    fields: Fields
    first_shard: int
    limits: Limits


@dataclass(frozen=True)
class Gathered:
    """A corpus whose rows can be compared: its shards by name and in groups, and the path of its index."""

    names: tuple[str, ...]
    group_size: int
    n_rows: int
    index: Path

    def groups(self) -> list[range]:
        """Return the numbers of the shards of each group."""
        n = len(self.names)
        return [range(start, min(start + self.group_size, n)) for start in range(0, n, self.group_size)]


def fields_of(dtype: np.dtype[Any]) -> Fields:
    """Return a row type in a form that a task's config can hold."""
    assert dtype.names is not None
    return tuple((name, dtype[name].str) for name in dtype.names)


def gather(config: GatherTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: sorted rows of some shards to one file of sorted rows, with positions in the corpus."""
    sources = [RowSource(path, in_shard(config.first_shard + i)) for i, path in enumerate(inputs)]
    limit = config.limits.bytes_in_memory
    with open(outputs[0], "wb") as file:
        for rows in merge_sorted(sources, np.dtype(list(config.fields)), within=Range(), bytes_in_memory=limit):
            file.write(rows.tobytes())
    return TaskResult()


def describe_shards(run: ShardRun, stage: Stage, config: Any, shards: Shards) -> list[FinishedTask]:
    """Run one task per shard, which writes (sorted rows, .about, .notes)."""
    endings = (ROWS_ENDING, ABOUT_ENDING, NOTES_ENDING)
    folder = run.workspace.folder / stage.name
    tasks = [
        Task(config, (path,), tuple(folder / f"{name}{ending}" for ending in endings)) for name, path in shards.items()
    ]
    return run.tasks(stage, tasks)


def gather_rows(
    run: ShardRun,
    stage: Stage,
    described: Sequence[FinishedTask],
    *,
    kind: Kind,
    setting: Mapping[str, Any],
    dtype: np.dtype[Any],
    limits: Limits,
) -> Gathered:
    """Merge the rows of all shards into groups and write the index. ConfigError: too many shards or documents."""
    documents = [int(finished.facts["documents"]) for finished in described]
    _check_numbers(documents)
    paths = [finished.task.outputs for finished in described]
    names = tuple(path.name.removesuffix(ROWS_ENDING) for path, _, _ in paths)
    group_size = max(limits.shards_per_group, math.isqrt(max(len(names) - 1, 0)) + 1)
    workspace = run.workspace
    index_path = workspace.folder / index_name(kind)
    tasks = []
    for first in range(0, len(paths), group_size):
        inputs = tuple(rows for rows, _, _ in paths[first : first + group_size])
        output = workspace.folder / stage.name / f"{first // group_size:05d}{ROWS_ENDING}"
        tasks.append(Task(GatherTask(fields_of(dtype), first, limits), inputs, (output,)))
    run.tasks(stage, tasks)
    groups = [task.outputs[0] for task in tasks]
    abouts, notes = (workspace.digests([outputs[i] for outputs in paths]) for i in (1, 2))
    index = Index(
        kind,
        dict(setting),
        paths[0][1].parent.name,
        tuple(
            IndexedShard(name, n, digests)
            for name, n, digests in zip(names, documents, zip(abouts, notes, strict=True), strict=True)
        ),
        tuple(
            Group(str(path.relative_to(workspace.folder)), path.stat().st_size, digest)
            for path, digest in zip(groups, workspace.digests(groups), strict=True)
        ),
    )
    run.tasks(INDEX, [Task(index, (), (index_path,))])
    workspace.check([index_path])
    return Gathered(names, group_size, sum(group.bytes for group in index.groups) // dtype.itemsize, index_path)


def row_files(indexes: Sequence[Path]) -> tuple[WrittenFile, ...]:
    """Return the files of sorted rows behind some indexes, with their digests."""
    groups = [(corpus.path.parent, group) for corpus in read_corpora(indexes) for group in corpus.index.groups]
    return tuple(WrittenFile(folder / group.path, group.digest) for folder, group in groups)


def note_files(
    indexes: Sequence[Path], endings: Sequence[str] = (ABOUT_ENDING, NOTES_ENDING)
) -> tuple[WrittenFile, ...]:
    """Return the .about and .notes files behind some indexes, with their digests."""
    return tuple(
        WrittenFile(corpus.file(number, ending), digest)
        for corpus in read_corpora(indexes)
        for number, shard in enumerate(corpus.index.shards)
        for ending, digest in zip((ABOUT_ENDING, NOTES_ENDING), shard.digests, strict=True)
        if ending in endings
    )


def _check_numbers(documents: Sequence[int]) -> None:
    if len(documents) > MAX_SHARDS:
        raise ConfigError(
            f"input.paths: {len(documents):,} files are too many: at most {MAX_SHARDS:,} can be de-duplicated at once"
        )
    if max(documents) > MAX_ROWS:
        raise ConfigError(
            f"input.paths: a file has {max(documents):,} documents, but at most {MAX_ROWS:,} can be de-duplicated. "
            "Split it"
        )

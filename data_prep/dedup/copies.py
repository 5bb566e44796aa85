"""The frame of both de-duplications: rows gathered from shards, copies listed shard by shard and removed, with the id
of the copy that stays; never decides which that is.

A shard's task writes rows sorted by what they are compared by. Gathering merges the rows of about as many shards as
there will be groups, so that S shards make sqrt(S) files, and a task that compares a range of values opens sqrt(S)
files and reads a slice of each. What it finds, (place of a copy, place of what stays), comes back the same way.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.dedup.index import (
    ABOUT_ENDING,
    INDEX,
    MOST_ROWS,
    MOST_SHARDS,
    NOTES_ENDING,
    OWN,
    ROWS_ENDING,
    Group,
    Index,
    IndexedShard,
    Kind,
    Notes,
    corpus_of,
    in_shard,
    index_name,
    place,
    read_corpora,
    shard_of,
)
from data_prep.dedup.sorted_rows import Limits, Range, Rows, RowSource, merge_sorted
from data_prep.documents.counts import Tally
from data_prep.documents.shards import read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import FinishedTask, Stage, Task, TaskResult
from gpt.errors import ConfigError

Names = tuple[tuple[str, str], ...]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.uint64]
CHOSEN = np.dtype([("place", "<u8"), ("kept", "<u8")])  # a document that goes, and the one that it is a copy of
_BLOCK = 1 << 12  # copies whose originals' ids are looked up at once


@dataclass(frozen=True)
class GatherTask:
    """Shards from number `first_shard` on, whose rows have these (field, type)."""

    fields: Names
    first_shard: int
    limits: Limits


@dataclass(frozen=True)
class ListTask:
    """Shards from number `first_shard` on; `corpora` names those that were compared with, in order of priority."""

    first_shard: int
    corpora: tuple[str, ...]
    limits: Limits


@dataclass(frozen=True)
class Removal:
    """What the removal step is called in the table, and why its documents go."""

    step: str
    reason: str


def fields_of(dtype: np.dtype[Any]) -> Names:
    """A row type as what a configuration can hold."""
    assert dtype.names is not None
    return tuple((name, dtype[name].str) for name in dtype.names)


def gather(config: GatherTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: sorted rows of some shards to one file of sorted rows, with places in the corpus."""
    sources = [RowSource(path, in_shard(config.first_shard + i)) for i, path in enumerate(inputs)]
    limit = config.limits.bytes_in_memory
    with open(outputs[0], "wb") as file:
        for rows in merge_sorted(sources, np.dtype(list(config.fields)), within=Range(), bytes_in_memory=limit):
            file.write(rows.tobytes())
    return TaskResult()


def list_copies(config: ListTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (indexes of all corpora, then CHOSEN files) to a list for each shard of a group.

    A list is JSON lines in the shard's order, [row, id of the document that stays, name of its corpus or null].
    """
    n_corpora = len(config.corpora) + 1
    sources = [RowSource(path) for path in inputs[n_corpora:]]
    group = Range(place(config.first_shard), place(config.first_shard + len(outputs)) - 1)
    found = merge_sorted(sources, CHOSEN, within=group, bytes_in_memory=config.limits.bytes_in_memory)
    with Notes(read_corpora(inputs[:n_corpora])) as notes:
        by_shard = groupby(_entries(found, notes, config.corpora), key=itemgetter(0))
        shard, entries = next(by_shard, (-1, iter(())))
        for number, output in enumerate(outputs, config.first_shard):
            with open(output, "w", encoding="utf-8") as file:
                if number == shard:
                    file.writelines(entry for _, entry in entries)
                    shard, entries = next(by_shard, (-1, iter(())))
    return TaskResult()


def _entries(blocks: Iterator[Rows], notes: Notes, corpora: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(shard, line of its list) of each copy."""
    for block in blocks:
        for start in range(0, len(block), _BLOCK):
            rows = block[start : start + _BLOCK]
            kept = {number: notes.document_id(number) for number in np.unique(rows["kept"]).tolist()}
            for number, original in rows.tolist():
                _, shard, row = shard_of(number)
                corpus = shard_of(original)[0]
                name = None if corpus == OWN else corpora[corpus]
                yield shard, json.dumps([row, kept[original], name]) + "\n"


def remove_copies(config: Removal, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (shard, its list of copies) to (the shard without them, trace)."""
    shard, list_path = inputs
    with open(list_path, encoding="utf-8") as file, write_shard(outputs[0]) as write, write_trace(outputs[1]) as trace:
        tally = Tally(config.step, trace)
        copies = map(json.loads, file)
        row, original, corpus = next(copies, (None, "", None))
        for number, document in enumerate(read_shard(shard)):
            if number != row:
                tally.keep(document.n_bytes, document.n_bytes)
                write(document)
                continue
            if corpus is None:
                tally.drop(config.reason, document.n_bytes, document.id, detail=f"copy of {original}")
            else:
                reason, detail = f"{config.reason}_of_other_corpus", f"copy of {original} in {corpus}"
                tally.drop(reason, document.n_bytes, document.id, detail=detail)
            row, original, corpus = next(copies, (None, "", None))
    return TaskResult([tally.counts()])


class ClusterSizes:
    """How many clusters of two documents or more there are, by size: 2 and 3, 4 to 7, and so on."""

    def __init__(self) -> None:
        self._n_by_bits: Counter[int] = Counter()
        self._unfinished = 0  # size of the last cluster so far

    def add(self, new: Flags) -> None:
        """The next documents, cluster by cluster; `new` says which begin one."""
        at = np.flatnonzero(new)
        if not len(at):
            self._unfinished += len(new)
            return
        whole = np.concatenate(([self._unfinished + at[0]], np.diff(at)))
        self._unfinished = len(new) - int(at[-1])
        bits, n = np.unique(np.frexp(whole)[1], return_counts=True)
        self._n_by_bits.update(dict(zip(bits.tolist(), n.tolist(), strict=True)))

    def table(self) -> dict[str, int]:
        """Least size: clusters; the last one counts as finished."""
        counted = self._n_by_bits + Counter([self._unfinished.bit_length()])
        return {str(2 ** (bits - 1)): n for bits, n in sorted(counted.items()) if bits > 1}


def with_first(blocks: Iterator[Rows], by: tuple[str, ...], field: str) -> Iterator[tuple[Rows, Flags, Numbers]]:
    """Sorted rows; which of them begin a group, of equal values in the fields `by`; and `field` of the first of each
    one's group, which may have come in an earlier block."""
    before: Any = None
    for rows in blocks:
        new = np.zeros(len(rows), dtype=bool)
        for name in by:
            new[1:] |= rows[name][1:] != rows[name][:-1]
        new[0] = before is None or any(before[name] != rows[name][0] for name in by)
        first = np.maximum.accumulate(np.where(new, np.arange(len(rows)), -1))
        values = rows[field][first]
        values[first < 0] = 0 if before is None else before[field]
        yield rows, new, values
        if first[-1] >= 0:
            before = rows[first[-1]].copy()


def choose(rows: Rows, kept: Numbers) -> Rows:
    """CHOSEN rows for those documents of this corpus that are not themselves what is kept."""
    goes = (corpus_of(rows["place"]) == OWN) & (rows["place"] != kept)
    chosen = np.empty(int(goes.sum()), CHOSEN)
    chosen["place"], chosen["kept"] = rows["place"][goes], kept[goes]
    return chosen


@dataclass(frozen=True)
class Gathered:
    """A corpus whose rows are ready to be compared: its shards in groups, and the path of its index."""

    names: tuple[str, ...]
    group_size: int
    n_rows: int
    index: Path

    def groups(self) -> list[range]:
        """Numbers of the shards of each group."""
        n = len(self.names)
        return [range(start, min(start + self.group_size, n)) for start in range(0, n, self.group_size)]


def describe_shards(run: ShardRun, stage: Stage, config: Any, shards: Shards) -> list[FinishedTask]:
    """One task a shard, which writes (sorted rows, .about, .notes)."""
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
    """Merge the rows of all shards into groups, and write the index by which later corpora find them."""
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
    return Gathered(names, group_size, sum(group.bytes for group in index.groups) // dtype.itemsize, index_path)


def _check_numbers(documents: Sequence[int]) -> None:
    if len(documents) > MOST_SHARDS:
        raise ConfigError(
            f"input.paths: {len(documents):,} files, at most {MOST_SHARDS:,} can be de-duplicated at once"
        )
    if max(documents) > MOST_ROWS:
        raise ConfigError(
            f"input.paths: a file of {max(documents):,} documents, at most {MOST_ROWS:,} can be de-duplicated; split it"
        )


def write_lists(
    run: ShardRun,
    stage: Stage,
    gathered: Gathered,
    *,
    indexes: Sequence[Path],
    chosen: Sequence[Path],
    corpora: Sequence[Path],
    limits: Limits,
) -> Shards:
    """A list of copies for each shard, by its name, for the removal."""
    lists = {name: run.workspace.folder / stage.name / f"{name}.jsonl" for name in gathered.names}
    tasks = []
    for group in gathered.groups():
        config = ListTask(group.start, tuple(str(path) for path in corpora), limits)
        outputs = tuple(lists[gathered.names[i]] for i in group)
        tasks.append(Task(config, (*indexes, *chosen), outputs))
    run.tasks(stage, tasks)
    return lists

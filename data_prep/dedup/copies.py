"""List the copies of each shard and remove them, naming in the trace the copy that is kept.

Both de-duplications find rows of (position of a copy, position of the kept document). One task turns them into the
lists of a group of shards.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.dedup.gather import Gathered, note_files
from data_prep.dedup.index import OWN, Notes, corpus_of, position, read_corpora, shard_of
from data_prep.dedup.sorted_rows import Limits, Range, Rows, RowSource, merge_sorted
from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import REASON, failed_rows
from data_prep.documents.shards import read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import Stage, Task, TaskResult
from gpt.files.json_text import decode_json

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.uint64]
COPY_ROW = np.dtype([("position", "<u8"), ("kept", "<u8")])  # a document to remove, and the one that it is a copy of
_BLOCK = 1 << 12  # copies for which to look up the kept documents' ids at once


@dataclass(frozen=True)
class ListTask:
    """Shards from number `first_shard` on; `corpora` names the other corpora, in order of priority."""

    first_shard: int
    corpora: tuple[str, ...]
    limits: Limits


@dataclass(frozen=True)
class Removal:
    """The removal step's name in the table, and its drop reason."""

    step: str
    reason: str


def list_copies(config: ListTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (indexes of all corpora, then COPY_ROW files) to a list for each shard of a group.

    A list is JSON lines in the shard's order: [row, id of the kept document, name of its corpus or null].
    """
    n_corpora = len(config.corpora) + 1
    sources = [RowSource(path) for path in inputs[n_corpora:]]
    group = Range(position(config.first_shard), position(config.first_shard + len(outputs)) - 1)
    found = merge_sorted(sources, COPY_ROW, within=group, bytes_in_memory=config.limits.bytes_in_memory)
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
    """Yield (shard, line of its list) for each copy."""
    for block in blocks:
        for start in range(0, len(block), _BLOCK):
            rows = block[start : start + _BLOCK]
            kept_ids = {number: notes.document_id(number) for number in np.unique(rows["kept"]).tolist()}
            for number, original in rows.tolist():
                _, shard, row = shard_of(number)
                corpus = shard_of(original)[0]
                name = None if corpus == OWN else corpora[corpus]
                yield shard, json.dumps([row, kept_ids[original], name]) + "\n"


def remove_copies(config: Removal, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (shard, its list of copies, quarantines of its comparison) to (the shard without them, trace)."""
    shard, list_path, *aside = inputs
    failed = failed_rows(aside)
    with open(list_path, encoding="utf-8") as file, write_shard(outputs[0]) as write, write_trace(outputs[1]) as trace:
        tally = Tally(config.step, trace)
        copies = map(decode_json, file)
        row, original, corpus = next(copies, (None, "", None))
        for number, document in enumerate(read_shard(shard)):
            if number in failed:
                n_bytes = len(document.text.encode("utf-8", "replace"))
                tally.drop(REASON, n_bytes, document.id, detail="in the comparison")
                continue
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
    """Count the clusters of two documents or more by size: 2 and 3, 4 to 7, and so on."""

    def __init__(self) -> None:
        self._n_by_bits: Counter[int] = Counter()
        self._unfinished = 0  # size of the last cluster so far

    def add(self, new: Flags) -> None:
        """Add the next documents, cluster by cluster; `new` (n,) marks the first of each cluster."""
        at = np.flatnonzero(new)
        if not len(at):
            self._unfinished += len(new)
            return
        whole = np.concatenate(([self._unfinished + at[0]], np.diff(at)))
        self._unfinished = len(new) - int(at[-1])
        bits, n = np.unique(np.frexp(whole)[1], return_counts=True)
        self._n_by_bits.update(dict(zip(bits.tolist(), n.tolist(), strict=True)))

    def table(self) -> dict[str, int]:
        """Return {minimum size: number of clusters}; the last cluster counts as complete."""
        counted = self._n_by_bits + Counter([self._unfinished.bit_length()])
        return {str(2 ** (bits - 1)): n for bits, n in sorted(counted.items()) if bits > 1}


def with_first_of_group(
    blocks: Iterator[Rows], by: tuple[str, ...], field: str
) -> Iterator[tuple[Rows, Flags, Numbers]]:
    """Yield (rows, which of them begin a group, `field` of the first row of each row's group) for each block.

    A group is a run of rows with equal values in the fields `by`; it may continue from the block before. All three are
    (n,).
    """
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


def copy_rows(rows: Rows, kept: Numbers) -> Rows:
    """Return a COPY_ROW for each document of this corpus that is not itself the kept one; `kept` (n,) are positions."""
    is_copy = (corpus_of(rows["position"]) == OWN) & (rows["position"] != kept)
    copies = np.empty(int(is_copy.sum()), COPY_ROW)
    copies["position"], copies["kept"] = rows["position"][is_copy], kept[is_copy]
    return copies


def write_lists(
    run: ShardRun,
    stage: Stage,
    gathered: Gathered,
    *,
    indexes: Sequence[Path],
    copies: Sequence[Path],
    corpora: Sequence[Path],
    limits: Limits,
) -> Shards:
    """Write a list of copies for each shard, for its removal; return the lists by the shards' names.

    `copies`: COPY_ROW files.
    """
    lists = {name: run.workspace.folder / stage.name / f"{name}.jsonl" for name in gathered.names}
    tasks = []
    inputs, notes = (*indexes, *copies), note_files(indexes)
    for group in gathered.groups():
        config = ListTask(group.start, tuple(str(path) for path in corpora), limits)
        outputs = tuple(lists[gathered.names[i]] for i in group)
        tasks.append(Task(config, inputs, outputs, notes))
    run.tasks(stage, tasks)
    return lists

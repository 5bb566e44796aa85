"""Exact de-duplication: keep one of all documents with the same text.

Steps: digest the texts of each shard, gather and sort the digests, choose the copies in each range of digests, remove
them from each shard. A text that a corpus of higher priority holds is removed. Else the copy whose id has the smallest
hash is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup.copies import (
    COPY_ROW,
    ClusterSizes,
    Removal,
    copy_rows,
    list_copies,
    remove_copies,
    with_first_of_group,
    write_lists,
)
from data_prep.dedup.gather import describe_shards, gather, gather_rows, row_files
from data_prep.dedup.index import OWN, describe_documents, find_indexes, read_corpora
from data_prep.dedup.sorted_rows import Limits, Range, even_ranges, merge_sorted, write_sorted
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.shards import Document, encode_line, keyed_hash, read_shard
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import Stage, Task, TaskResult
from gpt.errors import import_extra

# A document, 44 bytes: the two halves of its text's digest, its corpus, the order of preference among the copies of one
# corpus (hash of the id, hash of the line), and its position.
ROW = np.dtype(
    [("high", "<u8"), ("low", "<u8"), ("corpus", "<u4"), ("order", "<u8"), ("line", "<u8"), ("position", "<u8")]
)
_BLOCK = 1 << 12


@dataclass(frozen=True)
class ExactConfig:
    """The [dedup_exact] section of a recipe: remove equal texts."""

    enabled: bool = True
    """Whether to remove equal texts."""
    ignore_case_and_space: bool = False
    """Texts that differ only in case and whitespace are equal."""


@dataclass(frozen=True)
class DigestTask:
    """Settings of the comparison."""

    ignore_case_and_space: bool
    limits: Limits


@dataclass(frozen=True)
class CopyChoiceTask:
    """Digests whose upper half is in the range."""

    within: Range
    limits: Limits


def find_copies(
    run: ShardRun, config: ExactConfig, shards: Shards, *, against: Sequence[Path] = (), limits: Limits | None = None
) -> Shards:
    """Find the copies to remove from each shard, as lists for REMOVAL. `against`: corpora, highest priority first.

    Memory does not grow with documents or corpora. ConfigError: as `find_others`.
    """
    limits = limits or Limits()
    setting = _comparable(config)
    others = find_others(config, against, own=run.workspace.folder)
    described = describe_shards(run, DIGESTS, DigestTask(config.ignore_case_and_space, limits), shards)
    gathered = gather_rows(run, GATHER, described, kind="exact", setting=setting, dtype=ROW, limits=limits)
    indexes = (*others, gathered.index)
    folder = run.workspace.folder / CHOICE.name
    rows = row_files(indexes)
    tasks = [
        Task(CopyChoiceTask(within, limits), indexes, (folder / f"{i:05d}.rows",), rows)
        for i, within in enumerate(even_ranges(limits.n_tasks(gathered.n_rows)))
    ]
    run.tasks(CHOICE, tasks)
    copies = [task.outputs[0] for task in tasks]
    return write_lists(run, LISTS, gathered, indexes=indexes, copies=copies, corpora=against, limits=limits)


def find_others(config: ExactConfig, against: Sequence[Path], *, own: Path) -> list[Path]:
    """Return the indexes of the other corpora; `own` is this run's work folder. ConfigError: as `find_indexes`."""
    return find_indexes(against, "exact", own=own, setting=_comparable(config))


def _comparable(config: ExactConfig) -> dict[str, Any]:
    """Return the settings that two corpora must share to be compared."""
    return {"ignore_case_and_space": config.ignore_case_and_space}


def digest_texts(config: DigestTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to (a ROW for each of its documents, their .about, their .notes)."""
    xxhash = import_extra("xxhash", extra="data")
    rows: list[tuple[int, ...]] = []
    number = -1

    def digests(document: Document) -> tuple[int, ...]:
        text = " ".join(document.text.lower().split()) if config.ignore_case_and_space else document.text
        digest = xxhash.xxh3_128_intdigest(text.encode())
        line = xxhash.xxh3_64_intdigest(encode_line(document))
        return digest >> 64, digest & (2**64 - 1), OWN, keyed_hash(document.id, key="exact"), line

    with (
        write_sorted(outputs[0], ROW, bytes_in_memory=config.limits.bytes_in_memory) as append,
        describe_documents(outputs[1], outputs[2], key="exact") as describe,
        Quarantine("exact_digests", inputs, outputs) as quarantine,
    ):
        for number, (document, row) in enumerate(quarantine.each_or_none(read_shard(inputs[0]), digests)):
            if row is not None:
                rows.append((*row, number))
            describe(document, failed=row is None)
            if len(rows) >= _BLOCK:
                append(np.array(rows, dtype=ROW))
                rows.clear()
        append(np.array(rows, dtype=ROW))
    return TaskResult([], {"documents": number + 1})


def choose_copies(config: CopyChoiceTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: indexes of all corpora, this one's last, to COPY_ROWs. Facts: number of clusters by size."""
    sources = [source for corpus in read_corpora(inputs) for source in corpus.sources()]
    limit = config.limits.bytes_in_memory
    sizes = ClusterSizes()
    with write_sorted(outputs[0], COPY_ROW, bytes_in_memory=limit) as append:
        found = merge_sorted(sources, ROW, within=config.within, bytes_in_memory=limit)
        for rows, new, kept in with_first_of_group(found, ("high", "low"), "position"):
            sizes.add(new)
            append(copy_rows(rows, kept))
    return TaskResult([], {"clusters_of_size_from": sizes.table()})


DIGESTS = Stage("exact_digests", digest_texts)
GATHER = Stage("exact_gather", gather)
CHOICE = Stage("exact_choice", choose_copies)
LISTS = Stage("exact_lists", list_copies)
REMOVAL = Stage("dedup_exact", remove_copies)
COPY = Removal("dedup_exact", "duplicate")

"""Clusters of documents from pairs of places, with memory that does not grow, and the best document of each.

R. Kiveris and others, "Connected components in MapReduce and beyond" (2014), the alternating algorithm: *small-star*
links every smaller neighbour of a node, and the node, to the smallest of them; *large-star* links every larger one to
the smallest node among it and its neighbours. Neither joins or cuts a cluster, and when both change nothing each
cluster is a star around its smallest place. Sorted by node, the smallest neighbour comes first, so a task reads its
range of nodes as a stream and holds nothing of them, be it a star of a thousand million. A round takes both: chains
of n nodes need about log2 n rounds, stars none but the one that finds nothing to do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.dedup.copies import CHOSEN, ClusterSizes, Gathered, choose, with_first
from data_prep.dedup.index import (
    ABOUT,
    ABOUT_ENDING,
    MOST_ROWS,
    OWN,
    Corpus,
    corpus_of,
    place,
    place_ranges,
    read_corpora,
    shard_of,
)
from data_prep.dedup.sorted_rows import Limits, Range, Rows, RowSource, count_rows, merge_sorted, write_sorted
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.tasks import Stage, Task, TaskResult

# A pair of places. Sorted by the first of them, a node's neighbours stand together, the smallest first.
EDGE = np.dtype([("node", "<u8"), ("other", "<u8")])
# A document in a cluster, named by its smallest place, in the order in which documents are to be preferred.
RANKED = np.dtype([("label", "<u8"), ("shortness", "<u8"), ("order", "<u8"), ("text", "<u8"), ("place", "<u8")])
_ABOUT_BLOCK = 1 << 14


@dataclass(frozen=True)
class StarTask:
    """Nodes in the range, or clusters whose label is."""

    within: Range
    limits: Limits


@dataclass(frozen=True)
class RankTask:
    """Documents of so many shards from number `first_shard` on."""

    first_shard: int
    n_shards: int
    limits: Limits


def small_star(config: StarTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: EDGE files with `other` < `node` to the same in both directions. Facts: how many edges moved."""
    moved = 0
    with write_sorted(outputs[0], EDGE, bytes_in_memory=config.limits.bytes_in_memory) as append:
        for rows, new, smallest in _by_node(config, inputs):
            moved += int(np.count_nonzero(~new))
            one = np.where(new, rows["node"], rows["other"])
            append(edges(one, smallest))
            append(edges(smallest, one))
    return TaskResult([], {"moved_edges": moved})


def large_star(config: StarTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: EDGE files with both directions to those with `other` < `node`. Facts: how many edges moved."""
    moved = 0
    with write_sorted(outputs[0], EDGE, bytes_in_memory=config.limits.bytes_in_memory) as append:
        for rows, _, first in _by_node(config, inputs):
            larger = rows["other"] > rows["node"]
            smallest = np.minimum(rows["node"], first)
            moved += int(np.count_nonzero(larger & (smallest < rows["node"])))
            append(edges(rows["other"][larger], smallest[larger]))
    return TaskResult([], {"moved_edges": moved})


def edges(node: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> Rows:
    """EDGE rows of two columns."""
    rows = np.empty(len(node), EDGE)
    rows["node"], rows["other"] = node, other
    return rows


def connect(run: ShardRun, edge_files: Sequence[Path], *, corpora: Sequence[Corpus], limits: Limits) -> list[Path]:
    """From files of EDGE rows with `other` < `node` to such files, in both directions, of one star a cluster."""
    ranges = place_ranges(corpora, limits.n_tasks(count_rows(edge_files, EDGE), joining=True))
    files, _ = _step(run, SMALL_STAR, 0, edge_files, ranges, limits)
    number = 0
    while True:
        number += 1
        pointing, n_large = _step(run, LARGE_STAR, number, files, ranges, limits)
        files, n_small = _step(run, SMALL_STAR, number, pointing, ranges, limits)
        if n_large == n_small == 0:
            return files


def choose_best(
    run: ShardRun, stars: Sequence[Path], gathered: Gathered, *, corpora: Sequence[Corpus], limits: Limits
) -> list[Path]:
    """From the stars to files of CHOSEN rows: what goes, and what stays of its cluster."""
    folder = run.workspace.folder
    tasks = []
    for i, group in enumerate(gathered.groups()):
        config = RankTask(group.start, len(group), limits)
        tasks.append(Task(config, (gathered.index, *stars), (folder / RANKS.name / f"{i:05d}.rows",)))
    run.tasks(RANKS, tasks)
    ranked = tuple(task.outputs[0] for task in tasks)
    ranges = place_ranges(corpora, limits.n_tasks(count_rows(ranked, RANKED), joining=True))
    choices = [
        Task(StarTask(within, limits), ranked, (folder / CHOICE.name / f"{i:05d}.rows",))
        for i, within in enumerate(ranges)
    ]
    run.tasks(CHOICE, choices)
    return [task.outputs[0] for task in choices]


def rank_documents(config: RankTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (the index, stars in both directions) to RANKED rows of the documents in some shards."""
    (corpus,) = read_corpora(inputs[:1])
    sources = [RowSource(path) for path in inputs[1:]]
    within = Range(place(config.first_shard), place(config.first_shard + config.n_shards) - 1)
    limit = config.limits.bytes_in_memory
    with write_sorted(outputs[0], RANKED, bytes_in_memory=limit) as append:
        found = merge_sorted(sources, EDGE, within=within, bytes_in_memory=limit)
        for rows, new, smallest in with_first(found, ("node",), "other"):
            nodes = rows["node"][new]
            labels = np.minimum(nodes, smallest[new])
            cuts = [int(np.searchsorted(nodes, number)) for number in _shards_begin(nodes)]
            for start, stop in zip(cuts, [*cuts[1:], len(nodes)], strict=True):
                append(_ranked(nodes[start:stop], labels[start:stop], _about(corpus, nodes[start:stop])))
    return TaskResult()


def choose_copies(config: StarTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: RANKED files to CHOSEN rows of the clusters in a range. Facts: clusters by their size."""
    sources = [RowSource(path) for path in inputs]
    limit = config.limits.bytes_in_memory
    sizes = ClusterSizes()
    with write_sorted(outputs[0], CHOSEN, bytes_in_memory=limit) as append:
        found = merge_sorted(sources, RANKED, within=config.within, bytes_in_memory=limit)
        for rows, new, best in with_first(found, ("label",), "place"):
            sizes.add(new)
            append(choose(rows, np.where(corpus_of(rows["label"]) == OWN, best, rows["label"])))
    return TaskResult([], {"clusters_of_size_from": sizes.table()})


def _by_node(config: StarTask, inputs: tuple[Path, ...]) -> Iterator[Any]:
    sources = [RowSource(path) for path in inputs]
    found = merge_sorted(sources, EDGE, within=config.within, bytes_in_memory=config.limits.bytes_in_memory)
    return with_first(found, ("node",), "other")


def _step(
    run: ShardRun, stage: Stage, number: int, files: Sequence[Path], ranges: Sequence[Range], limits: Limits
) -> tuple[list[Path], int]:
    folder = run.workspace.folder / f"{stage.name}_{number}"
    tasks = [
        Task(StarTask(within, limits), tuple(files), (folder / f"{i:05d}.rows",)) for i, within in enumerate(ranges)
    ]
    finished = run.tasks(stage, tasks)
    return [task.outputs[0] for task in tasks], sum(int(task.facts["moved_edges"]) for task in finished)


def _shards_begin(nodes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The first place of each shard that is among the places."""
    return np.unique(nodes & ~np.uint64(MOST_ROWS - 1))


def _about(corpus: Corpus, nodes: npt.NDArray[np.uint64]) -> Rows:
    """ABOUT rows of sorted places in one shard, read in passing."""
    numbers = nodes & np.uint64(MOST_ROWS - 1)
    found = np.empty(len(nodes), ABOUT)
    done = 0
    with open(corpus.file(shard_of(int(nodes[0]))[1], ABOUT_ENDING), "rb") as file:
        while done < len(numbers):
            start = int(numbers[done])
            file.seek(start * ABOUT.itemsize)
            block = np.frombuffer(file.read(_ABOUT_BLOCK * ABOUT.itemsize), ABOUT)
            stop = int(np.searchsorted(numbers, np.uint64(start + len(block))))
            found[done:stop] = block[numbers[done:stop] - np.uint64(start)]
            done = stop
    return found


def _ranked(nodes: npt.NDArray[np.uint64], labels: npt.NDArray[np.uint64], about: Rows) -> Rows:
    rows = np.empty(len(nodes), RANKED)
    rows["label"], rows["place"] = labels, nodes
    rows["shortness"] = ~about["n_bytes"]  # the longest first
    rows["order"], rows["text"] = about["order"], about["text"]
    return rows


SMALL_STAR = Stage("minhash_small_star", small_star)
LARGE_STAR = Stage("minhash_large_star", large_star)
RANKS = Stage("minhash_ranks", rank_documents)
CHOICE = Stage("minhash_choice", choose_copies)

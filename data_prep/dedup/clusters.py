"""Find the clusters that pairs of documents form, in constant memory, and the best document of each.

This is the alternating algorithm of R. Kiveris and others, "Connected components in MapReduce and beyond" (2014).
*Small-star* links every smaller neighbour of a node, and the node itself, to the smallest of them. *Large-star* links
every larger neighbour of a node to the smallest node among the node and its neighbours. Neither step joins or cuts a
cluster. When both change nothing, each cluster is a star around its smallest position. Edges are sorted by node, then
neighbour, so the smallest neighbour comes first. A task therefore reads its range of nodes as a stream and keeps none
in memory, even for a star of 10^9 nodes. A round is both steps: a chain of n nodes needs about log2 n rounds, and a
star only the round that changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.dedup.copies import COPY_ROW, ClusterSizes, copy_rows, with_first_of_group
from data_prep.dedup.gather import Gathered, note_files
from data_prep.dedup.index import (
    ABOUT,
    ABOUT_ENDING,
    MAX_ROWS,
    OWN,
    Corpus,
    corpus_of,
    position,
    position_ranges,
    read_corpora,
    shard_of,
)
from data_prep.dedup.sorted_rows import Limits, Range, Rows, RowSource, count_rows, merge_sorted, write_sorted
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.tasks import Stage, Task, TaskResult

# A pair of positions. In sorted order a node's neighbours are together, the smallest first.
EDGE = np.dtype([("node", "<u8"), ("other", "<u8")])
# A document in a cluster. `label` is the cluster's smallest position; the order is that of preference within it.
RANKED = np.dtype([("label", "<u8"), ("shortness", "<u8"), ("order", "<u8"), ("text", "<u8"), ("position", "<u8")])
_ABOUT_BLOCK = 1 << 14


@dataclass(frozen=True)
class StarTask:
    """Nodes, or labels of clusters, in the range."""

    within: Range
    limits: Limits


@dataclass(frozen=True)
class RankTask:
    """Documents of `n_shards` shards from number `first_shard` on."""

    first_shard: int
    n_shards: int
    limits: Limits


def small_star(config: StarTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: EDGE files with `other` < `node` to edges in both directions. Facts: number of edges moved."""
    moved = 0
    with write_sorted(outputs[0], EDGE, bytes_in_memory=config.limits.bytes_in_memory) as append:
        for rows, new, smallest in _by_node(config, inputs):
            moved += int(np.count_nonzero(~new))
            one = np.where(new, rows["node"], rows["other"])
            append(edges(one, smallest))
            append(edges(smallest, one))
    return TaskResult([], {"moved_edges": moved})


def large_star(config: StarTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: EDGE files in both directions to edges with `other` < `node`. Facts: number of edges moved."""
    moved = 0
    with write_sorted(outputs[0], EDGE, bytes_in_memory=config.limits.bytes_in_memory) as append:
        for rows, _, first in _by_node(config, inputs):
            larger = rows["other"] > rows["node"]
            smallest = np.minimum(rows["node"], first)
            moved += int(np.count_nonzero(larger & (smallest < rows["node"])))
            append(edges(rows["other"][larger], smallest[larger]))
    return TaskResult([], {"moved_edges": moved})


def edges(node: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> Rows:
    """Join two columns to EDGE rows, (n,)."""
    rows = np.empty(len(node), EDGE)
    rows["node"], rows["other"] = node, other
    return rows


def connect(run: ShardRun, edge_files: Sequence[Path], *, corpora: Sequence[Corpus], limits: Limits) -> list[Path]:
    """Turn files of EDGE rows with `other` < `node` into files of one star per cluster, in both directions."""
    ranges = position_ranges(corpora, limits.n_tasks(count_rows(edge_files, EDGE), joining=True))
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
    """Turn stars into files of COPY_ROWs: the documents to remove, each with the kept document of its cluster."""
    folder = run.workspace.folder
    tasks = []
    inputs, about = (gathered.index, *stars), note_files([gathered.index], [ABOUT_ENDING])
    for i, group in enumerate(gathered.groups()):
        config = RankTask(group.start, len(group), limits)
        tasks.append(Task(config, inputs, (folder / RANKS.name / f"{i:05d}.rows",), about))
    run.tasks(RANKS, tasks)
    ranked = tuple(task.outputs[0] for task in tasks)
    ranges = position_ranges(corpora, limits.n_tasks(count_rows(ranked, RANKED), joining=True))
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
    within = Range(position(config.first_shard), position(config.first_shard + config.n_shards) - 1)
    limit = config.limits.bytes_in_memory
    with write_sorted(outputs[0], RANKED, bytes_in_memory=limit) as append:
        found = merge_sorted(sources, EDGE, within=within, bytes_in_memory=limit)
        for rows, new, smallest in with_first_of_group(found, ("node",), "other"):
            nodes = rows["node"][new]
            labels = np.minimum(nodes, smallest[new])
            cuts = [int(np.searchsorted(nodes, start)) for start in _shard_starts(nodes)]
            for start, stop in zip(cuts, [*cuts[1:], len(nodes)], strict=True):
                append(_ranked(nodes[start:stop], labels[start:stop], _about(corpus, nodes[start:stop])))
    return TaskResult()


def choose_copies(config: StarTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: RANKED files to COPY_ROWs of the clusters in a range. Facts: number of clusters by size."""
    sources = [RowSource(path) for path in inputs]
    limit = config.limits.bytes_in_memory
    sizes = ClusterSizes()
    with write_sorted(outputs[0], COPY_ROW, bytes_in_memory=limit) as append:
        found = merge_sorted(sources, RANKED, within=config.within, bytes_in_memory=limit)
        for rows, new, best in with_first_of_group(found, ("label",), "position"):
            sizes.add(new)
            append(copy_rows(rows, np.where(corpus_of(rows["label"]) == OWN, best, rows["label"])))
    return TaskResult([], {"clusters_of_size_from": sizes.table()})


def _by_node(config: StarTask, inputs: tuple[Path, ...]) -> Iterator[Any]:
    sources = [RowSource(path) for path in inputs]
    found = merge_sorted(sources, EDGE, within=config.within, bytes_in_memory=config.limits.bytes_in_memory)
    return with_first_of_group(found, ("node",), "other")


def _step(
    run: ShardRun, stage: Stage, number: int, files: Sequence[Path], ranges: Sequence[Range], limits: Limits
) -> tuple[list[Path], int]:
    folder = run.workspace.folder / f"{stage.name}_{number}"
    inputs = tuple(files)
    tasks = [Task(StarTask(within, limits), inputs, (folder / f"{i:05d}.rows",)) for i, within in enumerate(ranges)]
    finished = run.tasks(stage, tasks)
    return [task.outputs[0] for task in tasks], sum(int(task.facts["moved_edges"]) for task in finished)


def _shard_starts(nodes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the first position of each shard that holds one of the nodes."""
    return np.unique(nodes & ~np.uint64(MAX_ROWS - 1))


def _about(corpus: Corpus, nodes: npt.NDArray[np.uint64]) -> Rows:
    """Read the ABOUT rows of sorted positions in one shard, in one pass over its file."""
    numbers = nodes & np.uint64(MAX_ROWS - 1)
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
    rows["label"], rows["position"] = labels, nodes
    rows["shortness"] = ~about["n_bytes"]  # so that the longest comes first
    rows["order"], rows["text"] = about["order"], about["text"]
    return rows


SMALL_STAR = Stage("minhash_small_star", small_star)
LARGE_STAR = Stage("minhash_large_star", large_star)
RANKS = Stage("minhash_ranks", rank_documents)
CHOICE = Stage("minhash_choice", choose_copies)

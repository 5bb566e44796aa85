"""Check candidate pairs of documents by the exact similarity of their n-grams."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.dedup.clusters import EDGE
from data_prep.dedup.gather import note_files
from data_prep.dedup.index import Corpus, Notes, position_ranges, read_corpora
from data_prep.dedup.minhash import Numbers, similarities
from data_prep.dedup.sorted_rows import Limits, Range, Rows, RowSource, count_rows, merge_sorted, write_sorted
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.tasks import Stage, Task, TaskResult


@dataclass(frozen=True)
class CompareTask:
    """Pairs whose larger position is in the range. The first `n_corpora` inputs are indexes."""

    within: Range
    min_jaccard: float
    n_corpora: int
    limits: Limits


def compare_pairs(
    run: ShardRun, pairs: Sequence[Path], *, corpora: Sequence[Corpus], min_jaccard: float, limits: Limits
) -> list[Path]:
    """Filter files of EDGE rows (`other` < `node`): keep the pairs with at least the Jaccard similarity."""
    indexes = tuple(corpus.path for corpus in corpora)
    folder = run.workspace.folder / COMPARE.name
    tasks = []
    inputs, notes = (*indexes, *pairs), note_files(indexes)
    for i, within in enumerate(position_ranges(corpora, limits.n_tasks(count_rows(pairs, EDGE), joining=True))):
        config = CompareTask(within, min_jaccard, len(indexes), limits)
        tasks.append(Task(config, inputs, (folder / f"{i:05d}.rows",), notes))
    run.tasks(COMPARE, tasks)
    return [task.outputs[0] for task in tasks]


def compare(config: CompareTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (indexes of all corpora, EDGE files) to the EDGE rows of similar pairs.

    Each pair is compared once, regardless of how many bands it shares. Facts: number of pairs compared, and similar.
    """
    sources = [RowSource(path) for path in inputs[config.n_corpora :]]
    limit = config.limits.bytes_in_memory
    n_compared = n_similar = 0
    with (
        Notes(read_corpora(inputs[: config.n_corpora])) as notes,
        write_sorted(outputs[0], EDGE, bytes_in_memory=limit) as append,
    ):
        grams = _Grams(notes, limit // 8)
        for block in merge_sorted(sources, EDGE, within=config.within, bytes_in_memory=limit):
            similar = np.zeros(len(block), dtype=bool)
            for rows in _by_node(block):
                similar[rows] = grams.are_similar(int(block["node"][rows][0]), block["other"][rows], config.min_jaccard)
            append(block[similar])
            n_compared += len(block)
            n_similar += int(similar.sum())
    return TaskResult([], {"pairs": {"compared": n_compared, "similar": n_similar}})


def _by_node(block: Rows) -> Iterator[slice]:
    """Return a slice of rows for each node."""
    cuts = np.flatnonzero(block["node"][1:] != block["node"][:-1]) + 1
    return (slice(start, stop) for start, stop in pairwise([0, *cuts.tolist(), len(block)]))


class _Grams:
    """A least-recently-used cache of documents' n-grams, of at most `max_grams` in all."""

    def __init__(self, notes: Notes, max_grams: int) -> None:
        self._notes, self._max_grams = notes, max_grams
        self._cached: OrderedDict[int, Numbers] = OrderedDict()
        self._n_cached = 0

    def are_similar(self, node: int, others: Numbers, min_jaccard: float) -> npt.NDArray[np.bool_]:
        """Mark the documents at `others` (n,) that are similar enough to the one at `node`, (n,)."""
        own = self.of(node)
        found: list[npt.NDArray[np.float64]] = []
        batch: list[Numbers] = []
        n_grams = 0
        for other in others.tolist():
            batch.append(self.of(other))
            n_grams += len(batch[-1])
            if n_grams >= self._max_grams:
                found.append(similarities(own, batch))
                batch, n_grams = [], 0
        if batch:
            found.append(similarities(own, batch))
        return np.concatenate(found) >= min_jaccard

    def of(self, number: int) -> Numbers:
        """Return the n-grams of the document at a position, sorted."""
        grams = self._cached.get(number)
        if grams is None:
            grams = self._cached[number] = self._notes.grams(number, self._notes.about(number))
            self._n_cached += len(grams)
            while self._n_cached > self._max_grams and len(self._cached) > 1:
                self._n_cached -= len(self._cached.popitem(last=False)[1])
        else:
            self._cached.move_to_end(number)
        return grams


COMPARE = Stage("minhash_compare", compare)

"""Clusters of random graphs match a plain union-find, however the work is cut."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep.dedup.clusters import EDGE, connect, edges
from data_prep.dedup.index import OWN, Corpus, Index, IndexedShard, position, position_ranges
from data_prep.dedup.sorted_rows import LAST, Limits, write_sorted
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.workspace import Workspace

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
SIZES = (400, 1, 0, 900, 200)


def corpora() -> list[Corpus]:
    """One corpus of higher priority and our own, with shards of SIZES documents each."""
    shards = tuple(IndexedShard(str(i), n, ("", "")) for i, n in enumerate(SIZES))
    return [Corpus(number, Path(), Index("minhash", {}, "", shards, ())) for number in (0, OWN)]


def documents() -> list[int]:
    return [position(i, row, corpus=c.number) for c in corpora() for i, n in enumerate(SIZES) for row in range(n)]


def graphs():
    nodes = documents()
    shuffled = random.Random(1).sample(nodes, len(nodes))
    rng = random.Random(2)
    chain = list(pairwise(shuffled[:500]))
    sparse = [(rng.choice(nodes), rng.choice(nodes)) for _ in range(len(nodes) // 2)]
    star = [(shuffled[5], node) for node in nodes] + [(nodes[-1], node) for node in shuffled[:50]]
    ordered = list(pairwise(nodes[:300]))  # small-star alone changes nothing here
    return {"chain": chain, "ordered": ordered, "sparse": sparse, "star": star}


def union_find(pairs):
    parent = {}

    def root(a):
        while parent.setdefault(a, a) != a:
            a = parent[a]
        return a

    for a, b in pairs:
        a, b = sorted((root(a), root(b)))
        parent[b] = a
    return {a: root(a) for a in list(parent) if root(a) != a}


def test_clusters_match_a_union_find(tmp_path):
    limits = Limits(bytes_in_memory=3200, rows_per_task=800)
    with Workspace(tmp_path / "work", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
        for name, pairs in graphs().items():
            pairs = [(max(pair), min(pair)) for pair in pairs if pair[0] != pair[1]]
            files = [workspace.folder / f"{name}-{i}" for i in range(3)]
            for i, file in enumerate(files):
                with write_sorted(file, EDGE, bytes_in_memory=1600) as append:
                    columns = np.array(pairs[i::3], np.uint64).reshape(-1, 2)
                    append(edges(columns[:, 0], columns[:, 1]))
            run = ShardRun(workspace)
            stars = np.concatenate(
                [np.fromfile(f, EDGE) for f in connect(run, files, corpora=corpora(), limits=limits)]
            )
            found = {node: other for node, other in stars.tolist() if other < node}
            assert len(found) * 2 == len(stars), "one edge per node, in both directions"
            assert found == union_find(pairs)
            rounds = run.seconds["minhash_large_star"][0] // len(position_ranges(corpora(), limits.n_tasks(len(pairs))))
            assert rounds <= {"chain": 12, "ordered": 10, "sparse": 8, "star": 4}[name]


def test_ranges_of_positions_divide_the_documents_evenly():
    everything = np.array(documents(), np.uint64)
    for n in (1, 2, 5, 30):
        ranges = position_ranges(corpora(), n)
        assert (ranges[0].first, ranges[-1].last, len(ranges)) == (0, LAST, n)
        counts = [int(((everything >= r.first) & (everything <= np.uint64(r.last))).sum()) for r in ranges]
        assert sum(counts) == len(everything)
        assert max(counts) - min(counts) <= 1

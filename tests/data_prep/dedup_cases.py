"""De-duplicate documents with the real stages, and by brute force, for the tests of data_prep/dedup."""

import random
from pathlib import Path

from rich.console import Console

from data_prep.dedup import exact as dedup_exact
from data_prep.dedup import fuzzy as dedup_minhash
from data_prep.dedup.exact import ExactConfig
from data_prep.dedup.sorted_rows import Limits
from data_prep.documents.shards import keyed_hash, read_shard, write_shard
from data_prep.documents.traces import read_trace
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.workspace import Workspace

SMALL = Limits(bytes_in_memory=2400, rows_per_task=1500, shards_per_group=2)  # so that everything is cut and merged


def deduplicate(folder: Path, documents, n_shards, config, *, limits=None, against=()):
    """De-duplicate documents in `n_shards` shards, in `folder`; return {id of each removed one: (reason, detail)}."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = {}
    for number in range(n_shards):
        shards[f"shard-{number}"] = folder / f"{number}.jsonl.zst"
        with write_shard(folder / f"{number}.jsonl.zst") as write:
            for document in documents[number::n_shards]:
                write(document)
    exact = isinstance(config, ExactConfig)
    stages = dedup_exact if exact else dedup_minhash
    find = dedup_exact.find_copies if exact else dedup_minhash.find_near_copies
    with Workspace(folder / "work", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
        run = ShardRun(workspace)
        lists = find(run, config, shards, against=against, limits=limits)
        removal = dedup_exact.COPY if exact else dedup_minhash.NEAR_COPY
        left = run.map(stages.REMOVAL, removal, shards, extra_inputs=lists)
    kept = [document.id for path in left.values() for document in read_shard(path)]
    drops = [drop for path in left.values() for drop in read_trace(Path(str(path).replace(".jsonl", ".dropped.jsonl")))]
    gone = {drop.id: (drop.reason, drop.detail) for drop in drops}
    assert sorted([*kept, *(drop.id for drop in drops)]) == sorted(document.id for document in documents)
    assert run.counts[-1].documents_out == len(kept)
    return gone


def clusters_left(documents, pairs, key):
    """By brute force, return {id to remove: id to keep} if the pairs of numbers are copies; `key` is the stage's."""
    parent = list(range(len(documents)))

    def root(i):
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for a, b in pairs:
        parent[root(a)] = root(b)
    members = {}
    for i, document in enumerate(documents):
        members.setdefault(root(i), []).append(document)
    gone = {}
    for cluster in members.values():
        best = min(cluster, key=lambda d: (-len(d.text.encode()), keyed_hash(d.id, key=key)))
        gone |= {d.id: best.id for d in cluster if d is not best}
    return gone


def edited(text: str, share: float, seed: int) -> str:
    """Return the text with a share of its words replaced."""
    rng = random.Random(seed)
    return " ".join(f"edit{rng.randrange(9999)}" if rng.random() < share else word for word in text.split(" "))

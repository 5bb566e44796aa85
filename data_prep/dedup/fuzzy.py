"""Fuzzy de-duplication by MinHash and locality-sensitive hashing: keep the longest document of each near-copy cluster.

Steps: compute the band keys of each shard (signatures.py), gather and sort them (gather.py), find pairs in each range
of keys, check the pairs exactly if `min_jaccard` is above 0 (compare.py), find clusters and the best of each
(clusters.py), remove the others from each shard (copies.py). Every step consists of tasks whose memory does not grow
with the corpus.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.dedup.clusters import EDGE, choose_best, connect, edges
from data_prep.dedup.compare import compare_pairs
from data_prep.dedup.copies import (
    Removal,
    list_copies,
    remove_copies,
    with_first_of_group,
    write_lists,
)
from data_prep.dedup.gather import describe_shards, gather, gather_rows, row_files
from data_prep.dedup.index import OWN, corpus_of, find_indexes, read_corpora
from data_prep.dedup.minhash import Tokens, count_bits, max_differences
from data_prep.dedup.signatures import COMPARED_BAND, SIGNATURES, MinHash, SignTask
from data_prep.dedup.sorted_rows import Limits, Range, Rows, even_ranges, merge_sorted, write_sorted
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import Stage, Task, TaskResult
from gpt.errors import ConfigError

METHODS = {
    "banded": MinHash("words", ngram_words=5, bands=14, rows=8, min_jaccard=0.0, neighbours=16),
    "gpt3": MinHash("whitespace", ngram_words=1, bands=10, rows=1, min_jaccard=0.8, neighbours=16),
}


@dataclass(frozen=True)
class FuzzyConfig:
    """Section [dedup_minhash]. `method` gives the values of keys that are left out.

    "banded": word 5-grams and 14 bands of 8 rows, as in datatrove and FineWeb. "gpt3": appendix A of the GPT-3 paper
    (arXiv 2005.14165), Spark's MinHashLSH with 10 hashes over the classifier's features. These are sets of lower-cased
    words split at blanks; documents that share any of 10 hash values are candidates. The paper does not state its
    threshold; 0.8 is ours.
    """

    enabled: bool = True
    """Whether to remove texts that are nearly equal."""
    method: Literal["banded", "gpt3"] = "banded"
    """The source of the values of keys that are left out."""
    tokens: Tokens | None = None
    """The units of the n-grams: words, or texts between whitespace."""
    ngram_words: int | None = None
    """Words of an n-gram."""
    bands: int | None = None
    """Bands of hash values. Documents that share one band are candidates."""
    rows: int | None = None
    """Hash values of a band."""
    min_jaccard: float | None = None
    """Least Jaccard similarity of the n-grams at which a candidate is removed. 0 removes every candidate."""
    neighbours: int | None = None
    """Earlier documents of a band that a document is compared with."""

    def __post_init__(self) -> None:
        for name, value in asdict(METHODS[self.method]).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # so that the recorded settings equal the settings that run
        setting = self.setting
        for name in ("ngram_words", "bands", "rows", "neighbours"):
            if getattr(setting, name) < 1:
                raise ConfigError(f"dedup_minhash.{name} = {getattr(setting, name)} is invalid: must be at least 1")
        if not 0 <= setting.min_jaccard <= 1:
            raise ConfigError(f"dedup_minhash.min_jaccard = {setting.min_jaccard} is invalid: must be between 0 and 1")
        if setting.rows == 1 and setting.min_jaccard == 0:
            raise ConfigError(
                "dedup_minhash.min_jaccard = 0.0 is invalid: with rows = 1 it would remove texts that share almost "
                "nothing. Use a threshold, such as 0.8, or more rows"
            )

    @property
    def setting(self) -> MinHash:
        """The settings of MinHash: the given values, and the method's."""
        return MinHash(**{name: getattr(self, name) for name in asdict(METHODS[self.method])})


@dataclass(frozen=True)
class PairTask:
    """Band keys in the range."""

    within: Range
    setting: MinHash
    limits: Limits


def find_near_copies(
    run: ShardRun, config: FuzzyConfig, shards: Shards, *, against: Sequence[Path] = (), limits: Limits | None = None
) -> Shards:
    """Find the near-copies to remove from each shard, as lists for REMOVAL. `against`: corpora, highest priority first.

    Memory does not grow with documents or corpora. ConfigError: as `find_others`.
    """
    limits, setting = limits or Limits(), config.setting
    comparable = setting.comparable()
    others = find_others(config, against, own=run.workspace.folder)
    described = describe_shards(run, SIGNATURES, SignTask(setting, limits), shards)
    gathered = gather_rows(
        run, GATHER, described, kind="minhash", setting=comparable, dtype=setting.row_type, limits=limits
    )
    indexes = (*others, gathered.index)
    folder = run.workspace.folder / PAIRS.name
    rows = row_files(indexes)
    tasks = [
        Task(PairTask(within, setting, limits), indexes, (folder / f"{i:05d}.rows",), rows)
        for i, within in enumerate(even_ranges(limits.n_tasks(gathered.n_rows)))
    ]
    run.tasks(PAIRS, tasks)
    pairs = [task.outputs[0] for task in tasks]
    corpora = read_corpora(indexes)
    if setting.min_jaccard > 0:
        pairs = compare_pairs(run, pairs, corpora=corpora, min_jaccard=setting.min_jaccard, limits=limits)
    stars = connect(run, pairs, corpora=corpora, limits=limits)
    copies = choose_best(run, stars, gathered, corpora=corpora, limits=limits)
    return write_lists(run, LISTS, gathered, indexes=indexes, copies=copies, corpora=against, limits=limits)


def find_others(config: FuzzyConfig, against: Sequence[Path], *, own: Path) -> list[Path]:
    """Return the indexes of the other corpora; `own` is this run's work folder. ConfigError: as `find_indexes`."""
    return find_indexes(against, "minhash", own=own, setting=config.setting.comparable())


def find_pairs(config: PairTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: indexes of all corpora, this one's last, to EDGE rows of documents that share a band.

    `other` < `node`. At least one of the two is of this corpus. A bucket gives at most `neighbours` edges per document.
    """
    sources = [source for corpus in read_corpora(inputs) for source in corpus.sources()]
    limit = config.limits.bytes_in_memory
    found = merge_sorted(sources, config.setting.row_type, within=config.within, bytes_in_memory=limit)
    with write_sorted(outputs[0], EDGE, bytes_in_memory=limit) as append:
        pairs = _pairs_with_first(found) if config.setting.min_jaccard == 0 else _near_pairs(found, config.setting)
        for block in pairs:
            append(block)
    return TaskResult()


def _pairs_with_first(blocks: Iterator[Rows]) -> Iterator[Rows]:
    """Pair each document of a bucket with the first, which suffices to find clusters."""
    for rows, new, first in with_first_of_group(blocks, ("key",), "position"):
        own = ~new & (corpus_of(rows["position"]) == OWN)
        yield edges(rows["position"][own], first[own])


def _near_pairs(blocks: Iterator[Rows], setting: MinHash) -> Iterator[Rows]:
    """Pair each document of a bucket with up to `neighbours` before it, if their sketches allow enough similarity.

    This is the sorted neighbourhood of M. Hernandez, S. Stolfo, "The merge/purge problem for large databases" (1995).
    """
    max_bits = max_differences(setting.min_jaccard)
    before = np.empty(0, COMPARED_BAND)
    for new in blocks:
        rows = np.concatenate([before, new])
        own = corpus_of(rows["position"]) == OWN
        for distance in range(1, min(setting.neighbours, len(rows) - 1) + 1):
            left = np.arange(max(len(before) - distance, 0), len(rows) - distance)
            right = left + distance
            comparable = (rows["key"][left] == rows["key"][right]) & (own[left] | own[right])
            a, b = rows[left[comparable]], rows[right[comparable]]
            n = np.minimum(a["n_grams"], b["n_grams"]), np.maximum(a["n_grams"], b["n_grams"])
            similar = n[0] >= setting.min_jaccard * (1 - 1e-12) * n[1]  # Jaccard is at most smaller size over larger
            similar &= count_bits(a["sketch"] ^ b["sketch"]) <= max_bits
            similar &= a["position"] != b["position"]
            one, other = a["position"][similar], b["position"][similar]
            yield edges(np.maximum(one, other), np.minimum(one, other))
        before = rows[max(len(rows) - setting.neighbours, 0) :].copy()


GATHER = Stage("minhash_gather", gather)
PAIRS = Stage("minhash_pairs", find_pairs)
LISTS = Stage("minhash_lists", list_copies)
REMOVAL = Stage("dedup_minhash", remove_copies)
NEAR_COPY = Removal("dedup_minhash", "near_duplicate")

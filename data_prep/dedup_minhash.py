"""Fuzzy de-duplication by MinHash and locality-sensitive hashing; of each cluster of near-copies the longest stays.

Steps: signatures of each shard, one clustering over all of them, and the removal from each shard (dedup_exact).
Documents are ordered by length, then by hashes of id and text, before anything is compared, so neither the order nor
the number of shards decides which copy stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.dedup_exact import Removal, remove_rows
from data_prep.documents import keyed_hash, read_shard
from data_prep.engine import Result, Stage
from data_prep.files import read_array, write_array
from data_prep.minhash import EMPTY, band_keys, jaccard, permutations, shingles, signature
from gpt.errors import ConfigError, import_extra


@dataclass(frozen=True)
class FuzzyConfig:
    """Section [dedup_minhash]: word n-grams of `ngram_words`, `bands` x `rows` hash functions.

    With `min_jaccard` above 0, candidates count as near-copies only when their exact similarity is at least that.
    """

    enabled: bool = True
    ngram_words: int = 5
    bands: int = 14
    rows: int = 8
    min_jaccard: float = 0.0

    def __post_init__(self) -> None:
        for name in ("ngram_words", "bands", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"dedup_minhash.{name} = {getattr(self, name)} must be at least 1")
        if not 0 <= self.min_jaccard <= 1:
            raise ConfigError(f"dedup_minhash.min_jaccard = {self.min_jaccard} must lie between 0 and 1")


def sign_texts(config: FuzzyConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> Result:
    """Stage function: a shard to one row for each of its documents, with its signature."""
    xxhash = import_extra("xxhash", extra="data")
    multipliers, offsets = permutations(config.bands * config.rows)
    rows = []
    for document in read_shard(inputs[0]):
        places = signature(shingles(document.text, config.ngram_words), multipliers, offsets)
        text_hash = xxhash.xxh3_64_intdigest(document.text.encode())
        rows.append((document.n_bytes, keyed_hash(document.id, key="minhash"), text_hash, places))
    write_array(outputs[0], np.array(rows, dtype=_row_type(config)))
    return Result()


def find_near_copies(config: FuzzyConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> Result:
    """Stage function: (signatures of every shard, then every shard) to the row numbers to remove from each shard.

    Memory: the signatures of all documents, and the n-grams of the candidates when they are compared exactly.
    """
    n_shards = len(outputs)
    tables = [read_array(path) for path in inputs[:n_shards]]
    place = np.concatenate([_places(number, len(table)) for number, table in enumerate(tables)])  # (documents, 2)
    rows: npt.NDArray[Any] = np.concatenate(tables)
    order = np.lexsort((rows["text"], rows["order"], -rows["n_bytes"]))  # best copy first
    rows, place = rows[order], place[order]
    parent = np.arange(len(rows))
    pairs = {pair for band in range(config.bands) for pair in _candidates(rows["signature"], band, config.rows)}
    if config.min_jaccard > 0:
        pairs = _similar_pairs(pairs, place, inputs[n_shards:], config)
    for a, b in pairs:
        _unite(parent, a, b)
    removed = place[[i for i in range(len(rows)) if _root(parent, i) != i]].reshape(-1, 2)
    for number, path in enumerate(outputs):
        write_array(path, np.sort(removed[removed[:, 0] == number, 1]))
    return Result()


def _row_type(config: FuzzyConfig) -> np.dtype[Any]:
    n_places = config.bands * config.rows
    return np.dtype([("n_bytes", "<i8"), ("order", "<u8"), ("text", "<u8"), ("signature", "<u4", (n_places,))])


def _places(shard: int, n_documents: int) -> npt.NDArray[np.int64]:
    return np.stack([np.full(n_documents, shard), np.arange(n_documents)], axis=1)


def _candidates(signatures: npt.NDArray[np.uint32], band: int, n_rows: int) -> Iterator[tuple[int, int]]:
    """Pairs (better, worse) that share a band: each document with the best of its bucket and with the one before it."""
    with_words = np.flatnonzero((signatures != EMPTY).any(axis=1))
    keys = band_keys(signatures[with_words], band, n_rows)
    by_key = np.argsort(keys, kind="stable")
    first = previous = -1
    last_key = None
    for i in by_key[_in_company(keys[by_key])].tolist():
        number, key = int(with_words[i]), int(keys[i])
        if key != last_key:
            first = previous = number
            last_key = key
            continue
        yield first, number
        if previous != first:
            yield previous, number
        previous = number


def _in_company(sorted_keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of the sorted keys occur more than once."""
    same = sorted_keys[1:] == sorted_keys[:-1]
    company = np.zeros(len(sorted_keys), dtype=bool)
    company[1:] |= same
    company[:-1] |= same
    return company


def _similar_pairs(
    pairs: set[tuple[int, int]], place: npt.NDArray[np.int64], shards: tuple[Path, ...], config: FuzzyConfig
) -> set[tuple[int, int]]:
    """The pairs whose n-gram sets are really as similar as `min_jaccard`; reads the candidates' texts again."""
    wanted: dict[int, dict[int, int]] = {}  # shard: {row: document}
    for document in {document for pair in pairs for document in pair}:
        shard, row = place[document].tolist()
        wanted.setdefault(shard, {})[row] = document
    grams: dict[int, npt.NDArray[np.uint64]] = {}
    for shard, documents in wanted.items():
        for row, text in enumerate(document.text for document in read_shard(shards[shard])):
            if row in documents:
                grams[documents[row]] = shingles(text, config.ngram_words)
    return {(a, b) for a, b in pairs if jaccard(grams[a], grams[b]) >= config.min_jaccard}


def _root(parent: npt.NDArray[np.int64], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def _unite(parent: npt.NDArray[np.int64], a: int, b: int) -> None:
    """Join two clusters under their best document, the one with the smaller number."""
    a, b = sorted((_root(parent, a), _root(parent, b)))
    parent[b] = a


SIGNATURES = Stage(
    "minhash_signatures",
    sign_texts,
    ("dedup_minhash", "minhash", "words", "documents"),
    ("xxhash", "zstandard", "numpy"),
)
CLUSTERS = Stage("minhash_clusters", find_near_copies, ("dedup_minhash", "minhash", "words"), ("xxhash", "numpy"))
REMOVAL = Stage("dedup_minhash", remove_rows, ("dedup_exact", "documents"), ("zstandard",))
NEAR_COPY = Removal("dedup_minhash", "near_duplicate")

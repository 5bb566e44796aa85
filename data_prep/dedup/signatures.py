"""Turn shards of documents into rows from which near copies are found: one row for each band of each document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup.index import describe_documents
from data_prep.dedup.minhash import (
    HASH_VERSION,
    SKETCH_BITS,
    Numbers,
    Tokens,
    WordHashes,
    band_keys,
    distinct,
    following,
    hash_ngrams,
    permutations,
    signature,
    sketches,
    split_words,
)
from data_prep.dedup.sorted_rows import Limits, Rows, write_sorted
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.shards import Document, keyed_hash, read_shard
from data_prep.execution.tasks import Stage, TaskResult

# A band of a document, if documents that share one count as near-copies.
BAND = np.dtype([("key", "<u8"), ("position", "<u8")])
# A band, if pairs are compared exactly: `following` and `order` sort similar documents of a bucket next to each other;
# `sketch` and `n_grams` reject most other pairs without reading their n-grams.
COMPARED_BAND = np.dtype(
    [
        ("key", "<u8"),
        ("following", "<u8"),
        ("order", "<u8"),
        ("position", "<u8"),
        ("sketch", "<u8"),
        ("n_grams", "<u4"),
    ]
)
_BATCH_WORDS, _BATCH_DOCUMENTS = 1 << 14, 512  # to hash at once


@dataclass(frozen=True)
class MinHash:
    """Definition of near-copies.

    They share at least one of `bands` bands of `rows` hash values, over n-grams of `ngram_words` words. If
    `min_jaccard` is not 0, their n-grams also have at least this Jaccard similarity; then a document is compared with
    at most `neighbours` before it in each of its buckets.
    """

    tokens: Tokens
    ngram_words: int
    bands: int
    rows: int
    min_jaccard: float
    neighbours: int

    @property
    def row_type(self) -> np.dtype[Any]:
        """Type of a row."""
        return BAND if self.min_jaccard == 0 else COMPARED_BAND

    def comparable(self) -> dict[str, Any]:
        """Return the settings that two corpora must share to be compared."""
        names = ("tokens", "ngram_words", "bands", "rows")
        values = {"hash_version": HASH_VERSION, **{name: getattr(self, name) for name in names}}
        return {**values, "min_jaccard > 0": self.min_jaccard > 0}


@dataclass(frozen=True)
class SignTask:
    """Settings of a shard's band keys."""

    setting: MinHash
    limits: Limits


def sign_texts(config: SignTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to (its documents' bands, .about, .notes). Texts without words have no bands.

    Facts: `documents`, their number.
    """
    setting = config.setting
    signer = _Signer(setting)
    first = 0
    with (
        write_sorted(outputs[0], setting.row_type, bytes_in_memory=config.limits.bytes_in_memory) as append,
        describe_documents(outputs[1], outputs[2], key="minhash") as describe,
        Quarantine("minhash_signatures", inputs, outputs) as quarantine,
    ):
        found = quarantine.each_or_none(read_shard(inputs[0]), lambda one: split_words(one.text, setting.tokens))
        for documents, words in _batches(found):
            grams = signer.grams([own or [] for own in words])
            for document, own, some in zip(documents, words, grams, strict=True):
                describe(document, None if setting.min_jaccard == 0 else some, failed=own is None)
            append(signer.rows(documents, grams, first))
            first += len(documents)
    return TaskResult([], {"documents": first})


def _batches(
    found: Iterator[tuple[Document, list[bytes] | None]],
) -> Iterator[tuple[list[Document], list[list[bytes] | None]]]:
    """Yield documents and their words, None if they failed, in batches so large that numpy's calls cost little."""
    batch: list[Document] = []
    words: list[list[bytes] | None] = []
    n_words = 0
    for document, own in found:
        batch.append(document)
        words.append(own)
        n_words += len(own or ())
        if n_words >= _BATCH_WORDS or len(batch) == _BATCH_DOCUMENTS:
            yield batch, words
            batch, words, n_words = [], [], 0
    if batch:
        yield batch, words


class _Signer:
    """Turn words into n-grams, and n-grams into rows."""

    def __init__(self, setting: MinHash) -> None:
        self._setting = setting
        n_functions = setting.bands * setting.rows
        self._functions = permutations(n_functions if setting.min_jaccard == 0 else max(n_functions, SKETCH_BITS))
        self._known = WordHashes()

    def grams(self, words: list[list[bytes]]) -> list[Numbers]:
        """Hash each text's n-grams; if pairs are compared, only the distinct ones, sorted."""
        grams = hash_ngrams(words, self._setting.ngram_words, self._known)
        return grams if self._setting.min_jaccard == 0 else [distinct(some) for some in grams]

    def rows(self, documents: Sequence[Document], grams: Sequence[Numbers], first: int) -> Rows:
        """Return a row for each band of the documents with words; `first` is the first document's row in the shard."""
        setting = self._setting
        at = [i for i, some in enumerate(grams) if len(some)]
        if not at:
            return np.empty(0, setting.row_type)
        signatures = np.stack([signature(grams[i], self._functions) for i in at])
        keys = band_keys(
            signatures[:, : setting.bands * setting.rows], setting.bands, setting.rows
        )  # (documents, bands)
        rows = np.empty(keys.shape, setting.row_type)
        rows["key"], rows["position"] = keys, np.array(at, dtype=np.uint64)[:, None] + np.uint64(first)
        if setting.min_jaccard > 0:
            rows["following"] = following(keys)
            rows["order"] = np.array([_preference(documents[i]) for i in at], dtype=np.uint64)[:, None]
            rows["sketch"] = sketches(signatures)[:, None]
            rows["n_grams"] = np.array([len(grams[i]) for i in at], dtype=np.uint32)[:, None]
        return rows.ravel()


def _preference(document: Document) -> int:
    """Return the order of preference within a bucket: the longest first, then by a hash of the id."""
    length = min(document.n_bytes, 2**24 - 1)
    return (2**24 - 1 - length) << 40 | keyed_hash(document.id, key="minhash") >> 24


SIGNATURES = Stage("minhash_signatures", sign_texts)

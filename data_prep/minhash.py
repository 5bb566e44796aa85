"""MinHash signatures of word n-grams and the bands that find similar ones; knows texts and numbers, no files.

A. Broder, "On the resemblance and containment of documents" (1997). The probability that two signatures agree in one
place is the Jaccard similarity J of the texts' n-gram sets, so with b bands of r rows a pair becomes a candidate with
probability 1 - (1 - J^r)^b: .92 at J = .8 for 14 x 8.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.words import mix
from gpt.errors import import_extra

_WORD = re.compile(r"\w+")
_BLOCK = 1 << 12  # n-grams hashed at once: 4 MiB at 112 places, which stays in cache
EMPTY = np.uint32(0xFFFFFFFF)  # signature of a text without words


def shingles(text: str, n: int) -> npt.NDArray[np.uint64]:
    """Hashes of the distinct n-grams of lower-cased words, sorted; all words as one gram when they are fewer than n."""
    xxhash = import_extra("xxhash", extra="data")
    words = _WORD.findall(text.lower())
    known: dict[str, int] = {}
    for word in words:
        if word not in known:
            known[word] = xxhash.xxh3_64_intdigest(word.encode())
    hashes = np.array([known[word] for word in words], dtype=np.uint64)
    n = min(n, len(words))
    count = len(words) - n + 1 if words else 0
    grams = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        grams = mix(grams + hashes[i : i + count])
    return np.unique(grams)


def permutations(n: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Multipliers and offsets of n hash functions x -> (a x + b) >> 32: the same on every machine and version."""
    numbers = mix(mix(np.arange(1, 2 * n + 1, dtype=np.uint64)))
    return numbers[:n] | np.uint64(1), numbers[n:]


def signature(grams: npt.NDArray[np.uint64], multipliers: Any, offsets: Any) -> npt.NDArray[np.uint32]:
    """The smallest value of each hash function over the n-grams, (n_functions,)."""
    lowest = np.full(len(multipliers), EMPTY, dtype=np.uint32)
    for start in range(0, len(grams), _BLOCK):
        block = grams[start : start + _BLOCK]
        hashed = (block[:, None] * multipliers + offsets) >> np.uint64(32)  # (block, n_functions)
        np.minimum(lowest, hashed.min(axis=0).astype(np.uint32), out=lowest)
    return lowest


def band_keys(signatures: npt.NDArray[np.uint32], band: int, n_rows: int) -> npt.NDArray[np.uint64]:
    """A number a document for a band of its signature, (n_documents,): documents with equal ones are candidates."""
    keys = np.full(len(signatures), band + 1, dtype=np.uint64)
    for row in range(band * n_rows, (band + 1) * n_rows):
        keys = mix(keys + signatures[:, row].astype(np.uint64))
    return keys


def jaccard(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> float:
    """Similarity of two sets of n-grams, each sorted and distinct: shared over all."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)

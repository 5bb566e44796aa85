"""Compute MinHash signatures of word n-grams, and the band keys that similar texts share.

A. Broder, "On the resemblance and containment of documents" (1997). Two signatures agree at a position with a
probability of J, the Jaccard similarity of the texts' n-gram sets. With b bands of r rows, a pair becomes a candidate
with probability 1 - (1 - J^r)^b: .92 at J = .8 for 14 x 8.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_prep.documents.words import mix
from gpt.errors import import_extra

HASH_VERSION = 1  # of words, n-grams, hash functions and band keys: corpora must share it to be compared
EMPTY = np.uint32(0xFFFFFFFF)  # signature of a text without words
Tokens = Literal["words", "whitespace"]
Numbers = npt.NDArray[np.uint64]

_WORD = re.compile(r"\w+")
_BLOCK = 512  # n-grams to hash at once: 458,752 bytes at 112 functions, which fits the L2 cache
_MAX_CACHED_WORDS = 1 << 16  # about 8 MB; most words of a text are among the most frequent ones
# ASCII characters that `\w+` does not match become blanks; other characters are left to the regular expression.
_BLANKS = bytes(c if c >= 0x80 or chr(c).isalnum() or c == ord("_") else 0x20 for c in range(256))
_NEXT_BANDS = 8  # `following` takes 8 bits from the keys of this many bands
SKETCH_BITS = 64
_MAX_MISSED = 1e-6  # share of the pairs exactly at the threshold that their sketches may miss


class WordHashes(dict[bytes, int]):
    """A cache of words' 64-bit hashes (XXH3), filled by `__missing__`, so that a hit costs no Python call."""

    def __init__(self) -> None:
        super().__init__()
        self._hash = import_extra("xxhash", extra="data").xxh3_64_intdigest

    def __missing__(self, word: bytes) -> int:
        if len(self) >= _MAX_CACHED_WORDS:
            self.clear()
        value = self[word] = self._hash(word)
        return int(value)


@dataclass(frozen=True)
class HashFunctions:
    """x -> (multipliers x + offsets) >> 32, both (n,): the same on every machine and in every version."""

    multipliers: Numbers
    offsets: Numbers


def permutations(n: int) -> HashFunctions:
    """Return the first n hash functions."""
    numbers = mix(mix(np.arange(1, 2 * n + 1, dtype=np.uint64)))
    return HashFunctions(numbers[:n] | np.uint64(1), numbers[n:])


def split_words(text: str, tokens: Tokens = "words") -> list[bytes]:
    """Split a text into lower-cased words in UTF-8.

    "words": runs of letters, digits and underscores. "whitespace": split at ASCII blanks, like Spark's Tokenizer and so
    GPT-3's features.
    """
    data = text.lower().encode()
    if tokens == "whitespace":
        return data.split()
    pieces = data.translate(_BLANKS).split()
    if data.isascii():
        return pieces
    found = []
    for piece in pieces:
        if piece.isascii():
            found.append(piece)
        else:
            found += [word.encode() for word in _WORD.findall(piece.decode())]
    return found


def hash_ngrams(texts: Sequence[list[bytes]], n: int, known: WordHashes) -> list[Numbers]:
    """Hash each text's n-grams of words, in order; a text of fewer than n words has one hash, of all its words.

    Pass many short texts at once: for them a numpy call costs more than its sums.
    """
    counts = [len(words) for words in texts]
    words = chain.from_iterable(texts)
    hashes = np.fromiter(map(known.__getitem__, words), dtype=np.uint64, count=sum(counts))
    grams = _chained(hashes, n)  # includes n-grams across the ends of texts, which are skipped below
    found = []
    start = 0
    for count in counts:
        if 0 < count < n:
            found.append(_chained(hashes[start : start + count], count))
        else:
            found.append(grams[start : start + max(count - n + 1, 0)])
        start += count
    return found


def _chained(hashes: Numbers, n: int) -> Numbers:
    """Hash every n consecutive words: mix(... mix(mix(first) + second) ... + last)."""
    count = max(len(hashes) - n + 1, 0)
    grams = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        grams += hashes[i : i + count]
        grams = mix(grams)
    return grams


def distinct(grams: Numbers) -> Numbers:
    """Return the distinct n-grams, sorted. (numpy.unique hashes first, which takes several times as long here.)"""
    grams = np.sort(grams)
    keep = np.ones(len(grams), dtype=bool)
    np.not_equal(grams[1:], grams[:-1], out=keep[1:])
    return grams[keep]


def shingles(text: str, n: int, tokens: Tokens = "words") -> Numbers:
    """Return the hashes of a text's distinct n-grams, sorted."""
    return distinct(hash_ngrams([split_words(text, tokens)], n, WordHashes())[0])


def signature(grams: Numbers, functions: HashFunctions) -> npt.NDArray[np.uint32]:
    """Return the smallest value of each hash function over the n-grams, (n_functions,); repetitions do not matter."""
    n_functions = len(functions.multipliers)
    lowest = np.full(n_functions, 2**64 - 1, dtype=np.uint64)
    buffer = np.empty((min(len(grams), _BLOCK), n_functions), dtype=np.uint64)
    for start in range(0, len(grams), _BLOCK):
        block = grams[start : start + _BLOCK, None]  # (block, 1)
        hashed = np.multiply(block, functions.multipliers, out=buffer[: len(block)])  # (block, n_functions)
        hashed += functions.offsets
        np.minimum(lowest, hashed.min(axis=0), out=lowest)
    return (lowest >> np.uint64(32)).astype(np.uint32)  # last, since the shift keeps the order


def band_keys(signatures: npt.NDArray[np.uint32], bands: int, rows: int) -> Numbers:
    """Return a key for each band of each signature, (n, bands): documents that share one are candidates.

    Keys of different bands, or of different rows, are equal only by chance: two in 2^64.
    """
    values = signatures.reshape(len(signatures), bands, rows).astype(np.uint64)
    keys = np.tile(np.arange(1, bands + 1, dtype=np.uint64), (len(signatures), 1))
    for row in range(rows):
        keys = mix(keys + values[:, :, row])
    return keys


def following(keys: Numbers) -> Numbers:
    """For each band key, join the first 8 bits of the keys of the next bands of its document, (n, bands).

    Sorted by these numbers, documents of a bucket that share further bands are adjacent, as in a prefix tree: M. Bawa,
    T. Condie, P. Ganesan, "LSH Forest: self-tuning indexes for similarity search" (2005).
    """
    following = np.zeros_like(keys)
    for i in range(1, _NEXT_BANDS + 1):
        following = (following << np.uint64(8)) | (np.roll(keys, -i, axis=1) >> np.uint64(56))
    return following


def sketches(signatures: npt.NDArray[np.uint32]) -> Numbers:
    """Return the last bits of the first 64 values, (n,). Two documents agree in (1 + J) / 2 of them on average.

    P. Li, A. Koenig, "b-bit minwise hashing" (2010), with b = 1.
    """
    bits = np.packbits((signatures[:, :SKETCH_BITS] & np.uint32(1)).astype(np.uint8), axis=1)
    return np.ascontiguousarray(bits).view(np.dtype("<u8"))[:, 0]


def max_differences(min_jaccard: float) -> int:
    """Return in how many bits two sketches may differ: one in 10^6 pairs of that similarity differs in more."""
    p = (1 - min_jaccard) / 2
    beyond = 1.0
    for n in range(SKETCH_BITS):
        beyond -= math.comb(SKETCH_BITS, n) * p**n * (1 - p) ** (SKETCH_BITS - n)
        if beyond < _MAX_MISSED:
            return n
    return SKETCH_BITS


def count_bits(numbers: Numbers) -> Numbers:
    """Count the set bits of each 64-bit number: sum neighbouring bits, then pairs, then fours, then all bytes."""
    numbers = numbers - (numbers >> np.uint64(1) & np.uint64(0x5555555555555555))
    twos = np.uint64(0x3333333333333333)
    numbers = (numbers & twos) + (numbers >> np.uint64(2) & twos)
    numbers = numbers + (numbers >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (numbers * np.uint64(0x0101010101010101)) >> np.uint64(56)


def similarities(grams: Numbers, others: Sequence[Numbers]) -> npt.NDArray[np.float64]:
    """Compute the Jaccard similarity of a set of n-grams with others, (n_others,): size of intersection over union.

    Each set is sorted, distinct and not empty.
    """
    sizes = np.array([len(other) for other in others])
    joined = np.concatenate(others)
    at = np.searchsorted(grams, joined)
    at[at == len(grams)] = 0  # larger than all, so not equal to the first either
    shared = np.add.reduceat(grams[at] == joined, np.cumsum(sizes) - sizes, dtype=np.int64)
    return np.asarray(shared / (len(grams) + sizes - shared))


def jaccard(a: Numbers, b: Numbers) -> float:
    """Compute the Jaccard similarity of two sets of n-grams, each sorted and distinct; 0 if one is empty."""
    return float(similarities(a, [b])[0]) if len(a) and len(b) else 0.0

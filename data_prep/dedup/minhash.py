"""MinHash signatures of word n-grams and the bands that find similar ones; knows texts and numbers, no files.

A. Broder, "On the resemblance and containment of documents" (1997). The probability that two signatures agree in one
place is the Jaccard similarity J of the texts' n-gram sets, so with b bands of r rows a pair becomes a candidate with
probability 1 - (1 - J^r)^b: .92 at J = .8 for 14 x 8.
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

HASH_VERSION = 1  # of words, n-grams, hash functions and band keys: what differs in it cannot be compared
EMPTY = np.uint32(0xFFFFFFFF)  # signature of a text without words
Tokens = Literal["words", "whitespace"]
Numbers = npt.NDArray[np.uint64]

_WORD = re.compile(r"\w+")
_BLOCK = 512  # n-grams hashed at once: 458,752 bytes at 112 functions, which stays in the second cache
_KNOWN_WORDS = 1 << 16  # some 8 MB; nearly all words of a text are among the most frequent
# What ends a word of ASCII as `\w+` sees it becomes a blank; bytes of other characters are left for a closer look.
_BLANKS = bytes(c if c >= 0x80 or chr(c).isalnum() or c == ord("_") else 0x20 for c in range(256))
_NEXT_BANDS = 8  # whose keys' 8 high bits each make up what `following` gives
SKETCH_BITS = 64
_MOST_LOST = 1e-6  # of the pairs that are just similar enough, by their sketches


class WordHashes(dict[bytes, int]):
    """The 64-bit hash of every word seen so far (XXH3). A dict that fills itself, since a lookup then costs no call."""

    def __init__(self) -> None:
        super().__init__()
        self._hash = import_extra("xxhash", extra="data").xxh3_64_intdigest

    def __missing__(self, word: bytes) -> int:
        if len(self) >= _KNOWN_WORDS:
            self.clear()
        value = self[word] = self._hash(word)
        return int(value)


@dataclass(frozen=True)
class HashFunctions:
    """x -> (multipliers x + offsets) >> 32: the same on every machine and in every version."""

    multipliers: Numbers
    offsets: Numbers


def permutations(n: int) -> HashFunctions:
    """The first n hash functions."""
    numbers = mix(mix(np.arange(1, 2 * n + 1, dtype=np.uint64)))
    return HashFunctions(numbers[:n] | np.uint64(1), numbers[n:])


def split_words(text: str, tokens: Tokens = "words") -> list[bytes]:
    """The lower-cased words of a text in UTF-8: runs of letters, digits and underscores, or whatever stands between
    ASCII blanks, as Spark's Tokenizer splits and GPT-3's features are."""
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
    """For each text's words, a hash for each n-gram in turn; one for all words together when they are fewer than n.

    Many short texts at once cost little more than one, since numpy's calls cost more than its sums.
    """
    counts = [len(words) for words in texts]
    words = chain.from_iterable(texts)
    hashes = np.fromiter(map(known.__getitem__, words), dtype=np.uint64, count=sum(counts))
    grams = _chained(hashes, n)  # also across the ends of texts; those are not taken
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
    """The hash of every n in a row: mix(... mix(mix(first) + second) ... + last)."""
    count = max(len(hashes) - n + 1, 0)
    grams = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        grams += hashes[i : i + count]
        grams = mix(grams)
    return grams


def distinct(grams: Numbers) -> Numbers:
    """The different ones, sorted. (numpy.unique hashes first, which takes several times as long here.)"""
    grams = np.sort(grams)
    keep = np.ones(len(grams), dtype=bool)
    np.not_equal(grams[1:], grams[:-1], out=keep[1:])
    return grams[keep]


def shingles(text: str, n: int, tokens: Tokens = "words") -> Numbers:
    """Hashes of the distinct n-grams of a text, sorted."""
    return distinct(hash_ngrams([split_words(text, tokens)], n, WordHashes())[0])


def signature(grams: Numbers, functions: HashFunctions) -> npt.NDArray[np.uint32]:
    """The smallest value of each hash function over the n-grams, (n_functions,); repeated n-grams change nothing."""
    n_functions = len(functions.multipliers)
    lowest = np.full(n_functions, 2**64 - 1, dtype=np.uint64)
    space = np.empty((min(len(grams), _BLOCK), n_functions), dtype=np.uint64)
    for start in range(0, len(grams), _BLOCK):
        block = grams[start : start + _BLOCK, None]  # (block, 1)
        hashed = np.multiply(block, functions.multipliers, out=space[: len(block)])  # (block, n_functions)
        hashed += functions.offsets
        np.minimum(lowest, hashed.min(axis=0), out=lowest)
    return (lowest >> np.uint64(32)).astype(np.uint32)  # the shift keeps the order, so it can come last


def band_keys(signatures: npt.NDArray[np.uint32], bands: int, rows: int) -> Numbers:
    """A number for each band of each signature, (n, bands): documents that share one are candidates.

    Numbers of different bands differ but for chance, and so do those of different rows: two in 2^64.
    """
    places = signatures.reshape(len(signatures), bands, rows).astype(np.uint64)
    keys = np.tile(np.arange(1, bands + 1, dtype=np.uint64), (len(signatures), 1))
    for row in range(rows):
        keys = mix(keys + places[:, :, row])
    return keys


def following(keys: Numbers) -> Numbers:
    """For each band key, the start of the keys of the next bands of its document, 8 bits each, (n, bands).

    In the order of these numbers, documents of a bucket that share more than its band come to stand together, as in a
    prefix tree: M. Bawa, T. Condie, P. Ganesan, "LSH Forest: self-tuning indexes for similarity search" (2005).
    """
    following = np.zeros_like(keys)
    for i in range(1, _NEXT_BANDS + 1):
        following = (following << np.uint64(8)) | (np.roll(keys, -i, axis=1) >> np.uint64(56))
    return following


def sketches(signatures: npt.NDArray[np.uint32]) -> Numbers:
    """The last bit of each of the first 64 places, (n,). Two documents agree in (1 + J) / 2 of them on average.

    P. Li, A. Koenig, "b-bit minwise hashing" (2010), with b = 1.
    """
    bits = np.packbits((signatures[:, :SKETCH_BITS] & np.uint32(1)).astype(np.uint8), axis=1)
    return np.ascontiguousarray(bits).view(np.dtype("<u8"))[:, 0]


def most_differences(min_jaccard: float) -> int:
    """In how many bits two sketches may differ: pairs of that similarity differ in more once in 10^6."""
    p = (1 - min_jaccard) / 2
    beyond = 1.0
    for n in range(SKETCH_BITS):
        beyond -= math.comb(SKETCH_BITS, n) * p**n * (1 - p) ** (SKETCH_BITS - n)
        if beyond < _MOST_LOST:
            return n
    return SKETCH_BITS


def count_bits(numbers: Numbers) -> Numbers:
    """How many bits of each 64-bit number are set: sums of neighbouring bits, pairs, fours, then all bytes at once."""
    numbers = numbers - (numbers >> np.uint64(1) & np.uint64(0x5555555555555555))
    twos = np.uint64(0x3333333333333333)
    numbers = (numbers & twos) + (numbers >> np.uint64(2) & twos)
    numbers = numbers + (numbers >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (numbers * np.uint64(0x0101010101010101)) >> np.uint64(56)


def similarities(mine: Numbers, others: Sequence[Numbers]) -> npt.NDArray[np.float64]:
    """Jaccard similarity of a set of n-grams with others, (n_others,): shared over all. Each is sorted, distinct, and
    not empty."""
    sizes = np.array([len(other) for other in others])
    theirs = np.concatenate(others)
    at = np.searchsorted(mine, theirs)
    at[at == len(mine)] = 0  # larger than all, so certainly not equal to the first
    shared = np.add.reduceat(mine[at] == theirs, np.cumsum(sizes) - sizes, dtype=np.int64)
    return np.asarray(shared / (len(mine) + sizes - shared))


def jaccard(a: Numbers, b: Numbers) -> float:
    """Similarity of two sets of n-grams, each sorted and distinct; 0 when one is empty."""
    return float(similarities(a, [b])[0]) if len(a) and len(b) else 0.0

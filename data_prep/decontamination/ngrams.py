"""Turn n-grams of words into 64-bit numbers, and find known ones in a text.

A gram is "a lowercase, whitespace delimited word with no punctuation" (GPT-3, arXiv 2005.14165, appendix C). We read
this as a maximal run of characters that are not space, punctuation or symbol. Punctuation ends a word like a space
("don't" is two words), and alone it is no word. Two facts support this. OpenAI's published 13-grams have this form ("i
couldn t save your world"). For symbol insertion, table C.1 has N = 7; deleting punctuation inside words would give 2.
Invisible characters (soft hyphens, joiners, controls) are skipped. Capitals are lowered character by character. Two
different grams match with a probability of about 2^-64: with 10^7 known grams, once in 2 * 10^12 words of text.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from data_prep.documents.words import mix

Numbers = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

# Characters to scan at once, so that the arrays fit the cache. A longer word counts as several of this length.
BLOCK = 1 << 15
_SEPARATOR, _SKIPPED, _LETTER = 0, 1, 2  # kinds of characters; the table has the first two as they are
_CHARACTER_BASE = 0x9FB21C651E98DF25  # odd, so that it has an inverse
_WORD_BASE = 0xD6E8FEB86659FD93
_MAX_TABLE_BITS = 30
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Spans:
    """Words or grams in order, each with a number, and its start and end in the text in characters; all (n,)."""

    numbers: Numbers
    starts: Positions
    ends: Positions

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, which: slice | npt.NDArray[np.bool_] | Positions) -> "Spans":
        """Select some of them."""
        return Spans(self.numbers[which], self.starts[which], self.ends[which])


@dataclass(frozen=True)
class GramIndex:
    """Known grams. `numbers` are sorted and distinct; `bits` rejects most unknown grams by their first bits."""

    numbers: Numbers
    bits: npt.NDArray[np.uint8]
    shift: np.uint64

    @staticmethod
    def of(numbers: Numbers) -> "GramIndex":
        """Index sorted, distinct numbers. It takes 8 to 16 bytes for each besides them, at most 128 MiB."""
        width = min(max(16, (64 * len(numbers)).bit_length()), _MAX_TABLE_BITS)
        shift = np.uint64(64 - width)
        bits = np.zeros(1 << (width - 3), dtype=np.uint8)
        for start in range(0, len(numbers), _AT_ONCE):
            prefixes = (numbers[start : start + _AT_ONCE] >> shift).astype(np.int64)
            np.bitwise_or.at(bits, prefixes >> 3, np.uint8(1) << (prefixes & 7).astype(np.uint8))
        return GramIndex(numbers, bits, shift)

    def find(self, grams: Spans) -> Spans:
        """Return the grams that are known, in order, each with its index in `numbers` as its number."""
        prefixes = (grams.numbers >> self.shift).astype(np.int64)
        maybe = np.flatnonzero((self.bits.take(prefixes >> 3) >> (prefixes & 7).astype(np.uint8)) & 1)
        if not len(maybe):
            return grams.part(slice(0))
        maybe = maybe[np.argsort(grams.numbers[maybe])]  # a search for sorted numbers reads less memory
        wanted = grams.numbers[maybe]
        found = np.searchsorted(self.numbers, wanted)
        found[found == len(self.numbers)] = 0
        known = self.numbers[found] == wanted
        hits, found = maybe[known], found[known].astype(np.uint64)
        order = np.argsort(hits)
        hits = hits[order]
        return Spans(found[order], grams.starts[hits], grams.ends[hits])


def find_known(text: str, index: GramIndex, lengths: Sequence[int]) -> Spans:
    """Find every known gram of `lengths` words in a text, in linear time; a gram's number is its index in `index`."""
    return join(index.find(grams) for grams in scan_grams(text, lengths))


def find_in_each(texts: Sequence[str], index: GramIndex, lengths: Sequence[int]) -> tuple[Positions, Spans]:
    """Find the known grams of many texts at once, which is faster for short ones.

    Returns (index of the text, gram with its start and end in that text), each (n,).
    """
    found = find_known("\n".join(texts), index, lengths)
    if not len(found):
        return np.zeros(0, np.int64), found
    sizes = np.array([len(text) for text in texts])
    starts = np.concatenate(([0], np.cumsum(sizes + 1)[:-1]))
    rows = np.searchsorted(starts, found.starts, side="right") - 1
    inside = found.ends <= (starts + sizes)[rows]  # a gram across the end of its text does not count
    rows, found = rows[inside], found.part(inside)
    return rows, Spans(found.numbers, found.starts - starts[rows], found.ends - starts[rows])


def scan_grams(text: str, lengths: Sequence[int]) -> Iterator[Spans]:
    """Yield all grams of `lengths` words, thousands at a time: memory does not grow with the text."""
    longest = max(lengths)
    before = join(())  # the last words of the blocks so far, which begin grams that end in the next block
    for words in scan_words(text):
        n_before = len(before)
        both = join((before, words))
        for n in lengths:
            grams = _grams(both.part(slice(max(0, n_before - n + 1), None)), n)
            if len(grams):
                yield grams
        before = both.part(slice(max(0, len(both) - longest + 1), None))


def scan_words(text: str) -> Iterator[Spans]:
    """Yield the words of a text, a block at a time."""
    position = 0
    while position < len(text):
        block = text[position : position + BLOCK]
        taken = len(block)
        words, is_open = _block_words(block)
        if is_open and position + taken < len(text) and words.starts[-1] > 0:  # leave the whole word to the next block
            taken = int(words.starts[-1])
            words = words.part(slice(-1))
        if len(words):
            yield Spans(words.numbers, words.starts + position, words.ends + position)
        position += taken


def count_words(text: str) -> int:
    """Count the words of a text."""
    return sum(len(words) for words in scan_words(text))


def plain(text: str) -> str:
    """Return the words of a text as they are compared, separated by spaces, for people to read."""
    table = _characters()
    spans = ((int(a), int(b)) for words in scan_words(text) for a, b in zip(words.starts, words.ends, strict=True))
    return " ".join("".join(c for c in text[a:b].lower() if table[ord(c)] != _SKIPPED) for a, b in spans)


def join(parts: Iterator[Spans] | Sequence[Spans]) -> Spans:
    """Concatenate spans."""
    spans = list(parts)
    if len(spans) == 1:
        return spans[0]
    if not spans:
        return Spans(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Spans(
        np.concatenate([s.numbers for s in spans]),
        np.concatenate([s.starts for s in spans]),
        np.concatenate([s.ends for s in spans]),
    )


def _grams(words: Spans, n: int) -> Spans:
    """Return the n-grams of consecutive words; a gram's number is a polynomial of the words' numbers, mixed."""
    count = len(words) - n + 1
    if count <= 0:
        return words.part(slice(0))
    numbers, length = words.numbers, 1
    for bit in bin(n)[3:]:  # double the length, and add a word if the bit is set: 5 steps for 13 words
        raised = np.uint64(pow(_WORD_BASE, length, 1 << 64))
        numbers = numbers[:-length] * raised + numbers[length:]
        length *= 2
        if bit == "1":
            numbers = numbers[:-1] * np.uint64(_WORD_BASE) + words.numbers[length:]
            length += 1
    return Spans(mix(numbers), words.starts[:count], words.ends[n - 1 :])


def _block_words(block: str) -> tuple[Spans, bool]:
    """Return (the words of at most BLOCK characters, whether the last word may continue after them)."""
    table = _characters()
    if block.isascii():
        letters = table[:128].take(np.frombuffer(block.encode(), np.uint8))
    else:
        letters = table.take(np.frombuffer(block.encode("utf-32-le", "surrogatepass"), "<u4"))
    kept = None
    skipped = letters == _SKIPPED
    if skipped.any():
        kept = np.flatnonzero(~skipped)
        letters = letters[kept]
    inside = np.zeros(len(letters) + 2, dtype=bool)
    np.not_equal(letters, _SEPARATOR, out=inside[1:-1])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[0::2], edges[1::2]
    if not len(starts):
        return join(()), False
    powers, inverses = _powers(BLOCK)
    # A word's number is a polynomial of its letters. Separators are 0, so the sum from one start to the next is the
    # word's; the inverse power makes it independent of the word's position.
    sums = np.add.reduceat(letters * powers[: len(letters)], starts)
    numbers = mix(sums * inverses[starts])
    is_open = bool(inside[-2])
    if kept is not None:
        starts, ends = kept[starts], kept[ends - 1] + 1
    return Spans(numbers, starts, ends), is_open


@cache
def _powers(n: int) -> tuple[Numbers, Numbers]:
    """Return the first n powers of _CHARACTER_BASE, and of its inverse, modulo 2^64."""
    return tuple(
        np.multiply.accumulate(np.array([1] + [base] * (n - 1), dtype=np.uint64))
        for base in (_CHARACTER_BASE, pow(_CHARACTER_BASE, -1, 1 << 64))
    )  # type: ignore[return-value]


@cache
def _characters() -> Numbers:
    """Return a number for each code point: _SEPARATOR, _SKIPPED or the letter's, the same for upper and lower case."""
    lowered = np.arange(0x110000, dtype=np.uint64)
    kinds = np.full(0x110000, _LETTER, dtype=np.uint64)
    for plane in (0, 1, 2, 3, 14):  # the others have no characters, or only private ones
        codes = range(plane << 16, (plane + 1) << 16)
        lowered[codes.start : codes.stop] = [ord(chr(code).lower()[0]) for code in codes]
        kinds[codes.start : codes.stop] = [_kind(chr(code)) for code in codes]
    lowered[ord("ς")] = ord("σ")  # final sigma: both have the same capital
    return np.where(kinds == _LETTER, mix(lowered + np.uint64(1 << 32)), kinds)


def _kind(character: str) -> int:
    category = unicodedata.category(character)
    if character.isspace() or category[0] in "PSZ":
        return _SEPARATOR
    if category in ("Cf", "Cc") or (category == "Mn" and unicodedata.name(character, "").startswith("VARIATION")):
        return _SKIPPED
    return _LETTER

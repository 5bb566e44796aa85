"""A text seen as words, lines and n-grams, each computed once for all the rules that ask; never changes the text."""

import re
from functools import cached_property

import numpy as np
import numpy.typing as npt

# A run of letters and digits, with inner apostrophes and hyphens ("don't", "byte-pair"), or a run of punctuation.
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]+")
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication by it is one-to-one on 64 bits


class TextView:
    """One text and what the quality rules measure on it."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        """Words and runs of punctuation, in order."""
        return _WORD.findall(self.text)

    @cached_property
    def word_lengths(self) -> npt.NDArray[np.int64]:
        """Characters of each word, (n_words,)."""
        return np.fromiter(map(len, self.words), dtype=np.int64, count=len(self.words))

    @cached_property
    def lines(self) -> list[str]:
        """Lines without their ends."""
        return self.text.splitlines()

    @cached_property
    def _word_ids(self) -> npt.NDArray[np.uint64]:
        numbers: dict[str, int] = {}
        ids = [numbers.setdefault(word, len(numbers)) for word in self.words]
        return np.array(ids, dtype=np.uint64)

    def ngrams(self, n: int) -> npt.NDArray[np.uint64]:
        """A number for each n-gram of words, (n_words - n + 1,); within this text, equal numbers mean equal n-grams."""
        count = max(len(self.words) - n + 1, 0)
        grams = np.zeros(count, dtype=np.uint64)
        for i in range(n):
            grams = mix(grams + self._word_ids[i : i + count] + np.uint64(1))
        return grams

    def ngram_lengths(self, n: int) -> npt.NDArray[np.int64]:
        """Characters of each n-gram with one space between its words, (n_words - n + 1,)."""
        ends = np.concatenate(([0], np.cumsum(self.word_lengths)))
        return ends[n:] - ends[:-n] + (n - 1) if len(ends) > n else np.zeros(0, dtype=np.int64)


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread 64-bit numbers over 64 bits, one to one (multiply, fold the high bits down, multiply)."""
    values = values * _MIX
    values ^= values >> np.uint64(32)
    values *= _MIX
    return values ^ (values >> np.uint64(29))


def repeated(items: list[str]) -> tuple[int, int]:
    """(how many items equal an earlier one, how many characters those have)."""
    seen: set[str] = set()
    n_items = n_characters = 0
    for item in items:
        if item in seen:
            n_items += 1
            n_characters += len(item)
        seen.add(item)
    return n_items, n_characters

"""View a text as words and n-grams, each computed once for all the rules that use it."""

from functools import cached_property

import numpy as np
import numpy.typing as npt

from data_prep.documents.word_split import split_words

Integers = npt.NDArray[np.int64]
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication by it is one-to-one on 64 bits


class TextView:
    """One text and the measures that the quality rules need; pass `words` if they are known already."""

    def __init__(self, text: str, words: list[str] | None = None) -> None:
        self.text = text
        if words is not None:
            self.words = words

    @cached_property
    def words(self) -> list[str]:
        """Words and punctuation marks, in order."""
        return split_words(self.text)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Each distinct word with its number, in order of appearance."""
        return {word: number for number, word in enumerate(dict.fromkeys(self.words))}

    @cached_property
    def word_numbers(self) -> Integers:
        """The words as numbers in the vocabulary, (n_words,)."""
        return np.fromiter(map(self.vocabulary.__getitem__, self.words), dtype=np.int64, count=len(self.words))

    @cached_property
    def word_counts(self) -> Integers:
        """Count how often each word of the vocabulary occurs, (n_distinct,)."""
        return np.bincount(self.word_numbers, minlength=len(self.vocabulary))

    @cached_property
    def vocabulary_lengths(self) -> Integers:
        """Characters of each word of the vocabulary, (n_distinct,)."""
        return np.fromiter(map(len, self.vocabulary), dtype=np.int64, count=len(self.vocabulary))

    @cached_property
    def word_ends(self) -> Integers:
        """Characters of the first 0, 1, ... n_words words together, (n_words + 1,)."""
        ends = np.zeros(len(self.words) + 1, dtype=np.int64)
        np.cumsum(self.vocabulary_lengths[self.word_numbers], out=ends[1:])
        return ends

    def ngrams(self, n: int, starts: Integers) -> npt.NDArray[np.uint64]:
        """Number the n-gram of words at each start; within this text, equal numbers mean equal n-grams."""
        numbers = self.word_numbers.astype(np.uint64) + np.uint64(1)
        grams = numbers[starts]
        for i in range(1, n):
            grams = mix(grams) + numbers[starts + i]
        return grams

    def rarest_word_counts(self, n: int) -> Integers:
        """Return how often the rarest word of each n-gram occurs, (n_words - n + 1,): an upper limit for the n-gram."""
        counts = self.word_counts[self.word_numbers]
        rarest = counts[: max(len(counts) - n + 1, 0)]
        for i in range(1, n):
            rarest = np.minimum(rarest, counts[i : i + len(rarest)])
        return rarest

    def ngram_lengths(self, n: int) -> Integers:
        """Characters of the words of each n-gram, without the text between them, (n_words - n + 1,)."""
        return self.word_ends[n:] - self.word_ends[:-n]


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix the bits of 64-bit numbers, one to one (multiply, fold the high bits down, multiply)."""
    values = values * _MIX
    values ^= values >> np.uint64(32)
    values *= _MIX
    return values ^ (values >> np.uint64(29))


def later_copies(grams: npt.NDArray[np.uint64]) -> Integers:
    """Indexes of the numbers that equal an earlier one, in rising order."""
    order = np.argsort(grams, kind="stable")
    same = grams[order[1:]] == grams[order[:-1]]
    return np.sort(order[1:][same])


def repeated(items: list[str]) -> tuple[int, int]:
    """Return (items that equal an earlier one, their characters)."""
    if len(set(items)) == len(items):
        return 0, 0
    seen: set[str] = set()
    n_items = n_characters = 0
    for item in items:
        if item in seen:
            n_items += 1
            n_characters += len(item)
        seen.add(item)
    return n_items, n_characters

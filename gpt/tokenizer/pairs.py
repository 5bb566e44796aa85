"""Encode texts of any length by byte pairs with tiktoken."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt.errors import import_extra
from gpt.tokenizer.long_texts import LONG, MAX_PART, PART, cut_text, neighbours

# GPT-2's rule 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ as tiktoken
# 0.14 writes it: it finds the same pieces without backtracking.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# The same after each digit has been split off: blanks before a digit are the end of a text.
WORDS_AND_DIGITS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++(?=\p{N})|\s++$|\s+(?!\S)|\s"
_BLANK = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # the rule's \s
_MANY_BLANKS = re.compile(f"(?<![{_BLANK}])[{_BLANK}]{{{PART},}}")  # tiktoken cannot backtrack over a million of them
_A_BLANK = re.compile(f"[{_BLANK}]")


class BytePairs:
    """A byte-pair vocabulary in tiktoken. `ranks`: token bytes -> rank; merges happen in this order.

    `words`: the rule that splits a text before merges. `special_tokens` are names of ids that no text gives.
    ConfigError: tiktoken is not installed.
    """

    def __init__(
        self, name: str, ranks: Mapping[bytes, int], *, words: str, special_tokens: Mapping[str, int] | None = None
    ) -> None:
        tiktoken = import_extra("tiktoken", extra="data")
        self.model: Any = tiktoken.Encoding(
            name, pat_str=words, mergeable_ranks=dict(ranks), special_tokens=dict(special_tokens or {})
        )
        self._splits_digits = words == WORDS_AND_DIGITS
        self._inside = neighbours(ranks)

    def encode(self, text: str) -> list[int]:
        """Encode a text to ranks. A lone surrogate is read as U+FFFD."""
        if len(text) <= LONG:
            return list(self.model.encode_ordinary(text))
        return [i for part in self._parts(text) for i in self.model.encode_ordinary(part)]

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """Encode a text as a read-only array (n,). Faster than a list: no rank becomes a Python object."""
        if len(text) <= LONG:
            return self._array(text)
        return np.concatenate([self._array(part) for part in self._parts(text)])

    def _array(self, text: str) -> npt.NDArray[np.uint32]:
        try:
            ids: npt.NDArray[np.uint32] = self.model.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # a lone surrogate, which encode_ordinary replaces
            return np.array(self.encode(text), dtype=np.uint32)
        return ids

    def _parts(self, text: str) -> Iterator[str]:
        """Cut a long text without a change of its tokens.

        A run of blanks is a separate piece, except for its last blank if a word follows, so it can be taken out. Digits
        that are split off are no word.
        """
        start = 0
        for run in _MANY_BLANKS.finditer(text):
            stop = run.end() if self._ends_piece(text[run.end() : run.end() + 1]) else run.end() - 1
            if start < run.start():
                yield from cut_text(text[start : run.start()], self._may_cut)
            yield from (text[i : min(i + MAX_PART, stop)] for i in range(run.start(), stop, MAX_PART))
            start = stop
        if start < len(text):
            yield from cut_text(text[start:], self._may_cut)

    def _ends_piece(self, after: str) -> bool:
        """Return whether all blanks before this character ("" at the end of the text) are one piece."""
        return not after or (self._splits_digits and unicodedata.category(after).startswith("N"))

    def _may_cut(self, text: str, at: int) -> bool:
        """Return whether a word ends before `at`, or two letters of a word that no token has together meet there."""
        first, second = text[at - 1], text[at]
        if _A_BLANK.match(second):
            return not _A_BLANK.match(first)
        if not (first.isalpha() and second.isalpha()) or text[at - 2] == "'":  # 'll and the like are not cut
            return False
        return (first.encode("utf-8", "replace")[-1], second.encode("utf-8", "replace")[0]) not in self._inside

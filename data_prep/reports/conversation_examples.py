"""Read conversations back from the token files of a corpus, as a model will see them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.corpus.corpus import SPLITS
from gpt.files.json_text import decode_json
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import Tokenizer

_LOOKED_AT = 20_000  # documents of a split, among which the shortest and longest are found

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextRun:
    """Neighbouring tokens of one kind: text, or one special token by its name."""

    text: str
    learned: bool
    special: bool
    n_tokens: int


@dataclass(frozen=True)
class Seen:
    """A document of the token files; the streams are empty of kinds without them. `line`: of a ranking's side file."""

    number: int
    about: str  # why it is shown
    ids: Ints  # (n,)
    learned: Ints
    marks: Ints
    line: dict[str, Any]

    def sequences(self) -> list[tuple[slice, int]]:
        """The completions of a ranking with the level of each, else the whole document with level 0."""
        ends = (np.flatnonzero(self.marks) + 1).tolist()
        if not ends:
            return [(slice(0, len(self.ids)), 0)]
        return [(slice(a, b), int(self.marks[b - 1]) - 1) for a, b in pairwise([0, *ends])]


class SplitFiles:
    """The token files of a split with their streams."""

    def __init__(self, folder: Path, split: str, about: dict[str, Any]) -> None:
        self.tokens = TokenFile(folder / SPLITS[split])
        self._streams = {n: TokenFile(folder / one["prefix"]) for n, one in about.get("streams", {}).items()}
        self._rankings = folder / about["rankings"]["name"] if "rankings" in about else None
        self.n_documents = self.tokens.n_documents

    def lengths(self) -> Ints:
        """The lengths of the first documents, (n,)."""
        n = min(self.n_documents, _LOOKED_AT)
        end = [self.tokens.n_tokens] if n == self.n_documents else [self.tokens.document_start(n)]
        return np.diff([*map(self.tokens.document_start, range(n)), *end]).astype(np.int64)

    def read(self, number: int, about: str) -> Seen:
        """Read a document."""
        start = self.tokens.document_start(number)
        last = number + 1 == self.n_documents
        stop = self.tokens.n_tokens if last else self.tokens.document_start(number + 1)
        values = {name: file.read(start, stop).astype(np.int64) for name, file in self._streams.items()}
        none = np.zeros(stop - start, dtype=np.int64)
        ids = self.tokens.read(start, stop).astype(np.int64)
        return Seen(number, about, ids, values.get("learned", none), values.get("marks", none), self._line(number))

    def _line(self, number: int) -> dict[str, Any]:
        if self._rankings is None:
            return {}
        with open(self._rankings, encoding="utf-8") as lines:
            return dict(decode_json(next(islice(lines, number, None))))


def examples(files: SplitFiles, lengths: Ints, n: int) -> list[Seen]:
    """Read the first documents, which are a random sample, then the shortest and the longest one."""
    shortest, longest = int(lengths.argmin()), int(lengths.argmax())
    ends = {shortest: "the shortest", longest: "the longest"}
    chosen = dict.fromkeys((i for i in range(min(n, len(lengths))) if i not in ends), "") | ends
    return [files.read(number, about) for number, about in chosen.items()]


def runs(ids: Sequence[int], learned: Sequence[int], tokenizer: Tokenizer, names: dict[int, str]) -> Iterator[TextRun]:
    """Yield the runs of a sequence, in order."""
    first = 0
    for i in range(1, len(ids) + 1):
        is_end = i == len(ids) or learned[i] != learned[first] or ids[i] in names or ids[first] in names
        if is_end:
            part = list(ids[first:i])
            special = part[0] in names
            text = names[part[0]] if special else tokenizer.decode(part)
            yield TextRun(text, bool(learned[first]), special, i - first)
            first = i


def pack(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """Fill rows of seq_len tokens with whole documents in order, as data.sampling = "packed" does.

    A longer document is alone in its row, cut after seq_len + 1 tokens. Return the numbers of each row's documents.
    """
    rows: list[list[int]] = []
    left = 0
    for number, length in enumerate(lengths):
        if not rows or length > left:
            rows.append([])
            left = seq_len
        rows[-1].append(number)
        left -= length
    return rows

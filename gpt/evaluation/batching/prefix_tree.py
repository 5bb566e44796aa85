"""Which forward passes read a set of token sequences so that what they share is read once; runs no model.

Sequences are laid into a tree by their beginnings. A beginning that many share is read alone and its keys and values
are kept; what goes on from it follows in rows that hold many ends side by side, each token seeing its own ancestors
only. What shares nothing becomes rows of a batch.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEAST_READ = 32  # a pass over fewer tokens takes about as long as one over so many: the weights have to be read
_WORTH = 8  # tokens are read twice or more if that adds less than one in so many
_ROOT = 0


class Piece(NamedTuple):
    """Tokens start to stop of a sequence (by number), after another piece of the same row, or after the cache (-1)."""

    sequence: int
    start: int
    stop: int
    parent: int


class Place(NamedTuple):
    """Where a token of a sequence is read."""

    read: int
    row: int
    column: int


@dataclass(frozen=True)
class Read:
    """One forward pass: rows of pieces which go on from the first `earlier` tokens of the cache. `kept`: what it reads
    stays in the cache for passes that come later; without it and with nothing earlier it needs no cache."""

    earlier: int
    rows: list[list[Piece]]
    kept: bool = False

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(sum(piece.stop - piece.start for piece in row) for row in self.rows)

    @property
    def needs_mask(self) -> bool:
        """False where every row is one piece from the beginning, so that attention is plainly causal."""
        return self.earlier > 0 or any(len(row) > 1 for row in self.rows)

    def tokens(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """(b, t), padded on the right with 0."""
        filled = np.zeros((len(self.rows), self.width), dtype=np.int64)
        for number, row in enumerate(self.rows):
            for piece, at in _placed(row):
                filled[number, at : at + piece.stop - piece.start] = sequences[piece.sequence][piece.start : piece.stop]
        return filled

    def positions(self) -> NDArray[np.int64]:
        """(b, t): the place of each token in its own sequence; 0 for padding."""
        filled = np.zeros((len(self.rows), self.width), dtype=np.int64)
        for number, row in enumerate(self.rows):
            for piece, at in _placed(row):
                filled[number, at : at + piece.stop - piece.start] = np.arange(piece.start, piece.stop)
        return filled

    def mask(self) -> NDArray[np.bool_]:
        """(b, t, earlier + t): True where a token may look. Padding looks at itself: rows of nothing give NaN."""
        width = self.width
        seen = np.zeros((len(self.rows), width, self.earlier + width), dtype=np.bool_)
        seen[:, :, : self.earlier] = True
        seen[:, np.arange(width), self.earlier + np.arange(width)] = True
        for number, row in enumerate(self.rows):
            ends: list[int] = []
            for piece, at in _placed(row):
                stop = at + piece.stop - piece.start
                own = slice(self.earlier + at, self.earlier + stop)
                if piece.parent >= 0:
                    seen[number, at:stop] = seen[number, ends[piece.parent] - 1]
                seen[number, at:stop, own] = np.tri(stop - at, dtype=np.bool_)
                ends.append(stop)
        return seen


def _placed(row: list[Piece]) -> Iterator[tuple[Piece, int]]:
    """Pieces with the column at which each begins."""
    at = 0
    for piece in row:
        yield piece, at
        at += piece.stop - piece.start


@dataclass
class _Node:
    """Tokens start to end of `sequence` and of all others that pass here."""

    parent: int
    start: int
    end: int
    sequence: int
    children: list[int] = field(default_factory=list)
    size: int = 0  # tokens from here on


class Plan:
    """The passes over distinct, non-empty sequences, in order, and where each token is read.

    `row_tokens` bounds rows of several ends, and `batch_tokens` whole batches, padding included; one long sequence may
    be more. `branching`: also rows without anything in the cache may hold several ends, else each has a row of its own
    or a beginning in the cache. `sharing` False reads every sequence alone.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        row_tokens: int,
        batch_tokens: int,
        branching: bool = True,
        sharing: bool = True,
    ) -> None:
        self.sequences = sequences
        self.reads: list[Read] = []
        self._row_tokens = row_tokens
        self._branching = branching
        self._nodes, self._ends = _tree(sequences) if sharing else _no_tree(sequences)
        self._pieces: dict[int, tuple[list[Piece], int]] = {}  # of a node: its row, its number there
        self._stands_for: dict[int, int] = {}  # of a node that is read again with each child: the first of them
        self._free: list[list[Piece]] = []  # rows with nothing in the cache
        _measure(self._nodes)
        self._read_below(_ROOT)
        self.reads = [*_batches(self._free, batch_tokens), *self.reads]
        self._rows = {id(row): (number, i) for number, read in enumerate(self.reads) for i, row in enumerate(read.rows)}

    @property
    def tokens(self) -> int:
        """Tokens read in all, padding not counted."""
        return sum(p.stop - p.start for read in self.reads for row in read.rows for p in row)

    @property
    def cache_length(self) -> int:
        """Positions that the cache must hold at most; 0 without one."""
        return max((read.earlier + read.width for read in self.reads if read.kept or read.earlier), default=0)

    def places(self, sequence: int, first: int) -> list[Place]:
        """Where the tokens from number `first` on of a sequence are read."""
        node = self._ends[sequence]
        while node in self._stands_for:
            node = self._stands_for[node]
        found: list[Place] = []
        stop = len(self.sequences[sequence])
        while stop > first:
            if node in self._pieces:
                row, number = self._pieces[node]
                start = row[number].start
                if start < stop:
                    read, row_number = self._rows[id(row)]
                    column = sum(p.stop - p.start for p in row[:number]) - start
                    depths = range(stop - 1, max(start, first) - 1, -1)
                    found += [Place(read, row_number, column + depth) for depth in depths]
                    stop = min(stop, start)
            node = self._nodes[node].parent
        return found[::-1]

    def _read_below(self, node: int) -> None:
        """Plan all that goes on from a node which the cache holds to its end, or from the root."""
        earlier = self._nodes[node].end
        todo = deque((child, earlier) for child in self._nodes[node].children)
        row: list[Piece] = []
        used = self._row_tokens  # full: the first end begins a row
        while todo:
            number, start = todo.popleft()
            child = self._nodes[number]
            tokens = child.size + child.start - start
            is_free = earlier == 0
            if not child.children or (tokens <= self._row_tokens and (self._branching or not is_free)):
                if is_free or used + tokens > self._row_tokens:
                    row, used = [], 0
                    self._add_row(row, earlier)
                self._lay_out(number, start, row)
                used += tokens
            elif (child.end - start) * (len(child.children) - 1) <= max(_LEAST_READ, tokens // _WORTH):
                self._stands_for[number] = child.children[0]
                todo.extendleft((grandchild, start) for grandchild in reversed(child.children))
            else:
                prefix = [Piece(child.sequence, start, child.end, -1)]
                self._pieces[number] = (prefix, 0)
                self.reads.append(Read(earlier, [prefix], kept=True))
                self._read_below(number)

    def _add_row(self, row: list[Piece], earlier: int) -> None:
        if earlier == 0:
            self._free.append(row)
        else:
            self.reads.append(Read(earlier, [row]))

    def _lay_out(self, top: int, start: int, row: list[Piece]) -> None:
        """A node's subtree into a row; the top node begins at `start`."""
        todo = [(top, start, -1)]
        while todo:
            number, begin, parent = todo.pop()
            node = self._nodes[number]
            self._pieces[number] = (row, len(row))
            row.append(Piece(node.sequence, begin, node.end, parent))
            todo += [(child, node.end, len(row) - 1) for child in reversed(node.children)]


def _tree(sequences: Sequence[Sequence[int]]) -> tuple[list[_Node], list[int]]:
    """Nodes, the root first, and the node at which each sequence ends."""
    arrays = [np.array(sequence, dtype=">u4") for sequence in sequences]
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].tobytes())  # big-endian bytes sort as the numbers do
    nodes = [_Node(-1, 0, 0, 0)]
    ends = [0] * len(arrays)
    path = [_ROOT]
    for place, number in enumerate(order):
        shared = _shared(arrays[order[place - 1]], arrays[number]) if place else 0
        below = -1
        while nodes[path[-1]].end > shared:
            below = path.pop()
        if nodes[path[-1]].end < shared:  # it leaves the last sequence inside an edge
            middle = _Node(path[-1], nodes[below].start, shared, nodes[below].sequence, [below])
            nodes[path[-1]].children[-1] = len(nodes)
            nodes[below].parent, nodes[below].start = len(nodes), shared
            path.append(len(nodes))
            nodes.append(middle)
        assert len(arrays[number]) > shared, "sequences must be distinct and not empty"
        nodes[path[-1]].children.append(len(nodes))
        ends[number] = len(nodes)
        nodes.append(_Node(path[-1], shared, len(arrays[number]), number))
        path.append(len(nodes) - 1)
    return nodes, ends


def _no_tree(sequences: Sequence[Sequence[int]]) -> tuple[list[_Node], list[int]]:
    """Every sequence a child of the root."""
    ends = list(range(1, len(sequences) + 1))
    nodes = [_Node(_ROOT, 0, len(sequence), i) for i, sequence in enumerate(sequences)]
    return [_Node(-1, 0, 0, 0, ends), *nodes], ends


def _measure(nodes: list[_Node]) -> None:
    order = [_ROOT]
    for number in order:
        order += nodes[number].children
    for number in reversed(order):
        node = nodes[number]
        node.size = node.end - node.start + sum(nodes[child].size for child in node.children)


def _shared(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> int:
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def _batches(rows: list[list[Piece]], batch_tokens: int) -> Iterator[Read]:
    """Rows of about equal length together, the longest first, those of one piece apart: they need no mask."""
    for is_plain in (True, False):
        alike = [row for row in rows if (len(row) == 1) == is_plain]
        lengths = [sum(piece.stop - piece.start for piece in row) for row in alike]
        for numbers in batches_by_length(lengths, batch_tokens=batch_tokens):
            yield Read(0, [alike[number] for number in numbers])


def batches_by_length(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of sequences, longest first (so that a batch too large for memory fails at once), in batches of up to
    `batch_tokens` tokens when padded to the longest; a longer sequence is a batch of its own."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, batch_tokens // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]

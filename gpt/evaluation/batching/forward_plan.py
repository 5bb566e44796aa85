"""Plan the forward passes over a set of token sequences so that common prefixes are read once.

A prefix with many continuations gets a pass of its own, which leaves its keys and values in the cache. Later passes
read the continuations as packed rows: many continuations in one row, each token attending only to its own sequence.
Sequences that share nothing become rows of a batch.

Shapes: b rows, t columns of a pass.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt.evaluation.batching.prefix_tree import ROOT, flat_tree, prefix_tree

_MIN_PASS_TOKENS = 32  # a pass over fewer tokens takes as long as over this many: it has to read all the weights
_MAX_REREAD_SHARE = 1 / 8  # of the tokens below a prefix: the maximum cost of rereading it with each continuation


class Segment(NamedTuple):
    """Tokens `start` to `stop` of a sequence, in a row from `column` on.

    `parent` is the segment of this row that it continues, or -1 if it continues the cache or starts the sequence.
    """

    sequence: int
    start: int
    stop: int
    column: int
    parent: int

    @property
    def stop_column(self) -> int:
        return self.column + self.stop - self.start


Row = list[Segment]


def row_tokens(row: Row) -> int:
    """Tokens of a row."""
    return row[-1].stop_column if row else 0


class TokenIndex(NamedTuple):
    """The position of a token in a plan: the pass, and the index of the token in it (row * t + column)."""

    pass_number: int
    flat_index: int


@dataclass(frozen=True)
class PlannedPass:
    """One forward pass over rows that continue the first `cached_tokens` tokens in the cache.

    `extends_cache`: its keys and values stay in the cache for later passes.
    """

    rows: list[Row]
    cached_tokens: int = 0
    extends_cache: bool = False

    @property
    def uses_cache(self) -> bool:
        return self.extends_cache or self.cached_tokens > 0

    @property
    def width(self) -> int:
        """Tokens of the longest row, t."""
        return max(map(row_tokens, self.rows))

    @property
    def needs_mask(self) -> bool:
        """False if plain causal attention is right, since every row is the beginning of one sequence."""
        return self.cached_tokens > 0 or any(len(row) > 1 for row in self.rows)

    def tokens(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """Return token ids (b, t), padded on the right with 0."""
        tokens = np.zeros((len(self.rows), self.width), dtype=np.int64)
        for row, segment in self._segments():
            tokens[row, segment.column : segment.stop_column] = sequences[segment.sequence][
                segment.start : segment.stop
            ]
        return tokens

    def positions(self) -> NDArray[np.int64]:
        """Return the position (b, t) of each token in its own sequence; 0 for padding."""
        positions = np.zeros((len(self.rows), self.width), dtype=np.int64)
        for row, segment in self._segments():
            positions[row, segment.column : segment.stop_column] = np.arange(segment.start, segment.stop)
        return positions

    def mask(self) -> NDArray[np.bool_]:
        """Return (b, t, cached_tokens + t): True where a token attends to a key.

        Padding attends to itself: a query without keys gives NaN.
        """
        width, cached = self.width, self.cached_tokens
        mask = np.zeros((len(self.rows), width, cached + width), dtype=np.bool_)
        mask[:, :, :cached] = True
        mask[:, np.arange(width), cached + np.arange(width)] = True
        for row, segment in self._segments():
            columns = slice(segment.column, segment.stop_column)
            if segment.parent >= 0:
                mask[row, columns] = mask[row, self.rows[row][segment.parent].stop_column - 1]
            causal = np.tri(segment.stop - segment.start, dtype=np.bool_)
            mask[row, columns, cached + segment.column : cached + segment.stop_column] = causal
        return mask

    def _segments(self) -> Iterator[tuple[int, Segment]]:
        return ((number, segment) for number, row in enumerate(self.rows) for segment in row)


class ForwardPlan:
    """The passes over distinct, non-empty sequences, in order, and where each token is read.

    `row_tokens` limits packed rows and `batch_tokens` limits batches, padding included; a longer sequence gets a row
    or a batch of its own. `branching` False packs only rows that continue the cache; rows without a cache then hold
    one sequence each. `sharing` False reads every sequence alone.
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
        self._row_tokens = row_tokens
        self._branching = branching
        self._nodes, self._ends = prefix_tree(sequences) if sharing else flat_tree(sequences)
        self._rows: list[Row] = []
        self._segment_of: dict[int, tuple[int, Segment]] = {}  # by node: its row and segment
        self._repeated_in: dict[int, int] = {}  # by node that is read with each of its children: the first child
        self._uncached_rows: list[int] = []
        self._cached_passes: list[tuple[int, PlannedPass]] = []  # of one row each, with that row's number
        self._plan_below(ROOT)
        self.passes: list[PlannedPass] = []
        self._first_index: dict[int, TokenIndex] = {}  # by row: where its first token is read
        for numbers in self._batches(batch_tokens):
            self._add_pass(PlannedPass([self._rows[number] for number in numbers]), numbers)
        for number, planned in self._cached_passes:
            self._add_pass(planned, [number])

    @property
    def tokens(self) -> int:
        """Tokens that all passes read, without padding."""
        return sum(map(row_tokens, self._rows))

    @property
    def cache_length(self) -> int:
        """Positions that the cache needs; 0 if no pass uses it."""
        return max((p.cached_tokens + p.width for p in self.passes if p.uses_cache), default=0)

    def token_indices(self, sequence: int, first: int) -> list[TokenIndex]:
        """Return where the plan reads the tokens of a sequence, from token `first` on."""
        node = self._ends[sequence]
        while node in self._repeated_in:
            node = self._repeated_in[node]
        parts: list[list[TokenIndex]] = []  # from the last segment to the first
        stop = len(self.sequences[sequence])
        while stop > first:
            if node in self._segment_of:
                row, segment = self._segment_of[node]
                pass_number, row_index = self._first_index[row]
                offset = row_index + segment.column - segment.start
                parts.append([TokenIndex(pass_number, offset + i) for i in range(max(segment.start, first), stop)])
                stop = segment.start
            node = self._nodes[node].parent
        return list(chain.from_iterable(reversed(parts)))

    def _plan_below(self, node: int) -> None:
        """Plan everything below a node whose tokens are all in the cache, or below the root."""
        cached_tokens = self._nodes[node].end
        queue = deque((child, cached_tokens) for child in self._nodes[node].children)
        packed = -1  # the row that takes further continuations
        while queue:
            number, start = queue.popleft()
            child = self._nodes[number]
            tokens = child.subtree_tokens + child.start - start
            fits = tokens <= self._row_tokens and (self._branching or cached_tokens > 0)
            if fits or not child.children:
                if packed < 0 or cached_tokens == 0 or row_tokens(self._rows[packed]) + tokens > self._row_tokens:
                    packed = self._new_row(cached_tokens)
                self._lay_out(number, start, packed)
            elif self._is_cheap_to_repeat(number, start, tokens):
                self._repeated_in[number] = child.children[0]
                queue.extendleft((grandchild, start) for grandchild in reversed(child.children))
            else:
                prefix = self._new_row(cached_tokens, extends_cache=True)
                self._add_segment(number, start, prefix, parent=-1)
                self._plan_below(number)

    def _is_cheap_to_repeat(self, number: int, start: int, tokens: int) -> bool:
        """Return whether to read a node's tokens with each child, instead of once in a pass of its own."""
        node = self._nodes[number]
        repeated = (node.end - start) * (len(node.children) - 1)
        return repeated <= max(_MIN_PASS_TOKENS, int(tokens * _MAX_REREAD_SHARE))

    def _new_row(self, cached_tokens: int, *, extends_cache: bool = False) -> int:
        """Add an empty row. Rows without a cache are batched later, the others are a pass each."""
        row: Row = []
        self._rows.append(row)
        number = len(self._rows) - 1
        if cached_tokens or extends_cache:
            self._cached_passes.append((number, PlannedPass([row], cached_tokens, extends_cache)))
        else:
            self._uncached_rows.append(number)
        return number

    def _lay_out(self, top: int, start: int, row: int) -> None:
        """Add a node and all nodes below to a row. The top node begins at token `start`, which may be a parent's."""
        stack = [(top, start, -1)]
        while stack:
            number, begin, parent = stack.pop()
            own = self._add_segment(number, begin, row, parent=parent)
            node = self._nodes[number]
            stack += [(child, node.end, own) for child in reversed(node.children)]

    def _add_segment(self, number: int, start: int, row: int, *, parent: int) -> int:
        """Add tokens `start` to the end of a node to a row. Returns the segment's number in the row."""
        node, segments = self._nodes[number], self._rows[row]
        segment = Segment(node.sequence, start, node.end, row_tokens(segments), parent)
        segments.append(segment)
        self._segment_of[number] = row, segment
        return len(segments) - 1

    def _batches(self, batch_tokens: int) -> Iterator[list[int]]:
        """Batch rows of similar length. Rows of one segment stay apart from the others, since they need no mask."""
        for is_plain in (True, False):
            rows = [number for number in self._uncached_rows if (len(self._rows[number]) == 1) == is_plain]
            lengths = [row_tokens(self._rows[number]) for number in rows]
            for batch in batches_by_length(lengths, batch_tokens=batch_tokens):
                yield [rows[i] for i in batch]

    def _add_pass(self, planned: PlannedPass, rows: list[int]) -> None:
        for i, number in enumerate(rows):
            self._first_index[number] = TokenIndex(len(self.passes), i * planned.width)
        self.passes.append(planned)


def batches_by_length(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[list[int]]:
    """Batch sequences of similar length, at most `batch_tokens` tokens a batch when padded to its longest.

    Yields the indices of the sequences. A longer sequence is a batch of its own. The longest come first, so that a
    batch too large for memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, batch_tokens // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]

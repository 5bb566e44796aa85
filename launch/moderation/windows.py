"""Cut long texts into windows that overlap, and order sequences so that rows have little padding."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt.post_training.sequence_scores import MIN_ROW_TOKENS

Ints = NDArray[np.int64]
Scores = NDArray[np.float64]
_FEW_ROWS = 8  # for which several row lengths are tried
OVERLAP = 4  # a window repeats this part of the one before: 1 / 4


def windows_of(ids: Ints, *, window: int, end: int) -> list[Ints]:
    """The windows of a text's tokens (n,), each with the end-of-document token `end` and at most `window` long.

    One window holds a short text, and an empty one. The last window of a long text ends with it, so it overlaps more.
    """
    room = window - 1
    assert room > 0, f"a window of {window} tokens has no room for a text"
    if len(ids) <= room:
        starts = [0]
    else:
        step = max(1, room - room // OVERLAP)
        starts = [*range(0, len(ids) - room, step), len(ids) - room]
    return [np.append(ids[start : start + room], end) for start in starts]


def largest(scores: Scores, n_windows: Sequence[int]) -> Scores:
    """The largest score of each text's windows: (n, c) from the scores of all windows (m, c), in order."""
    starts = np.cumsum([0, *n_windows[:-1]])
    return np.maximum.reduceat(scores, starts, axis=0)


def packed_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """The sequences of each row, by number: first fit, the longest first."""
    room: list[int] = []
    rows: list[list[int]] = []
    first_open = 0  # rows before it are full
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[number]
        row = next((i for i in range(first_open, len(rows)) if room[i] >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[row].append(number)
        room[row] -= length
        while first_open < len(rows) and room[first_open] < 1:
            first_open += 1
    return rows


@dataclass(frozen=True)
class BatchShape:
    """Rows of `row_tokens`, `rows_at_once` of them in a batch of each data rank. `order`: of the sequences; consecutive
    ones fill the rows."""

    row_tokens: int
    rows_at_once: int
    order: list[int]


def batch_shape(lengths: Sequence[int], *, batch_tokens: int, multiple: int = 1, data_size: int = 1) -> BatchShape:
    """The shape with the least padding: few sequences get short rows, and batches have equally many rows.

    A batch has about `batch_tokens` tokens at most, and a row a multiple of `multiple` (the tensor ranks). Row lengths
    are rounded, so that a server meets few of them: oneDNN keeps compiled code for each shape.
    """
    longest, total = max(lengths), sum(lengths)
    wanted = [max(longest, MIN_ROW_TOKENS)]
    parts = -(-total // wanted[0])
    if parts <= _FEW_ROWS:
        wanted += [longest, *(max(longest, math.ceil(total / parts * slack)) for slack in (1.0, 1.02, 1.05, 1.1))]
    shapes = []
    for row_tokens in sorted({_rounded(size, multiple) for size in wanted}):
        rows = packed_rows(lengths, row_tokens)
        n_batches = -(-len(rows) // (max(1, batch_tokens // row_tokens) * data_size))
        at_once = -(-len(rows) // (n_batches * data_size))
        order = [number for row in rows for number in row]
        shapes.append((n_batches * at_once * row_tokens, BatchShape(row_tokens, at_once, order)))
    return min(shapes, key=lambda one: one[0])[1]


def _rounded(size: int, multiple: int) -> int:
    """The next multiple of 16 up to 128 tokens and of 64 beyond, and of `multiple`."""
    step = math.lcm(multiple, 16 if size <= 128 else 64)
    return -(-size // step) * step

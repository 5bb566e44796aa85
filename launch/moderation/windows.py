"""Cut long texts into windows that overlap, and order sequences so that rows have little padding."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Scores = NDArray[np.float64]
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


def packing_order(lengths: Sequence[int], row_tokens: int) -> list[int]:
    """The sequences in an order in which consecutive ones fill rows: first fit, the longest first."""
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
    return [number for row in rows for number in row]

"""Sort, merge and search files of fixed-size rows that are larger than memory.

A file has only its rows, sorted by all their fields, the first field first. The reader must know their type. Memory is
about `bytes_in_memory` of rows (about four times that while sorting), whatever the sizes of the files: D. Knuth, "The
Art of Computer Programming", volume 3, section 5.4 (sorting by merging).
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]  # (n,), of a structured type whose fields are unsigned whole numbers
LAST = 2**64 - 1
_OPEN_FILES = 256  # to keep open while merging; if there are more, reopen each for each read, below the system's limit
_MIN_ROWS_READ = 64
_MAX_RUNS = 512  # to merge at once: more would need more memory, even at _MIN_ROWS_READ each


@dataclass(frozen=True)
class Limits:
    """Limits of a task's memory and size; no result depends on them.

    There is one task for every `rows_per_task` rows, but at most `max_tasks`, or `max_joining` if each task reads a
    slice of the output of every task of the step before. Beyond that, tasks get larger, but not their memory, since
    they read their rows as a stream. At least `shards_per_group` shards are gathered into a file.
    """

    bytes_in_memory: int = 1 << 20
    rows_per_task: int = 1 << 21
    max_tasks: int = 1024
    max_joining: int = 256
    shards_per_group: int = 64

    def n_tasks(self, n_rows: int, *, joining: bool = False) -> int:
        """Return the number of tasks for `n_rows` rows."""
        return max(1, min(self.max_joining if joining else self.max_tasks, -(-n_rows // self.rows_per_task)))


@dataclass(frozen=True)
class Range:
    """Values of a first field, from `first` to `last` inclusive."""

    first: int = 0
    last: int = LAST


@dataclass(frozen=True)
class RowSource:
    """A sorted file of rows. `adapt` is applied to the rows read; it must not change their order."""

    path: Path
    adapt: Callable[[Rows], Rows] | None = None


def even_ranges(n: int) -> list[Range]:
    """Divide all 64-bit numbers into n ranges of equal size."""
    cuts = [(i << 64) // n for i in range(n + 1)]
    return [Range(first, following - 1) for first, following in pairwise(cuts)]


def sort_rows(rows: Rows) -> Rows:
    """Sort rows by all their fields: a fast sort by the first field, then a slower one where that is equal."""
    names = rows.dtype.names
    assert names is not None
    rows = rows[np.argsort(rows[names[0]])]
    tied = np.flatnonzero(_is_repeated(rows[names[0]]))
    if len(tied):
        some = rows[tied]
        rows[tied] = some[np.lexsort([some[name] for name in reversed(names)])]
    return rows


def _is_repeated(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Mark the sorted values that occur more than once, (n,)."""
    same = values[1:] == values[:-1]
    repeated = np.zeros(len(values), dtype=bool)
    repeated[1:] |= same
    repeated[:-1] |= same
    return repeated


@contextmanager
def write_sorted(path: Path, dtype: np.dtype[Any], *, bytes_in_memory: int) -> Iterator[Callable[[Rows], None]]:
    """Write a sorted file of distinct rows: yields a function to call with rows in any order."""
    rows_in_memory = max(bytes_in_memory // dtype.itemsize, 1)
    waiting: list[Rows] = []
    n_waiting = 0
    ends = [0]  # of the sorted runs, in rows
    with ExitStack() as stack, open(path, "wb") as file:
        runs = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))  # it has no name, so a kill leaves nothing

        def take() -> Rows:
            nonlocal n_waiting
            rows = np.concatenate(waiting) if waiting else np.empty(0, dtype)
            waiting.clear()
            n_waiting = 0
            return _distinct(sort_rows(rows))

        def append(rows: Rows) -> None:
            nonlocal n_waiting
            for start in range(0, len(rows), rows_in_memory):
                block = rows[start : start + rows_in_memory]
                waiting.append(block)
                n_waiting += len(block)
                if n_waiting >= rows_in_memory:
                    _write(runs, ends, [take()])

        yield append
        rest = take()
        if len(ends) == 1:
            file.write(rest.tobytes())
            return
        _write(runs, ends, [rest])
        while len(ends) > _MAX_RUNS:
            longer, longer_ends = stack.enter_context(tempfile.TemporaryFile(dir=path.parent)), [0]
            for start in range(0, len(ends) - 1, _MAX_RUNS):
                some = _slices(runs, dtype, ends[start : start + _MAX_RUNS + 1])
                _write(longer, longer_ends, _merge(some, rows_in_memory))
            runs, ends = longer, longer_ends
        _write(file, [0], _merge(_slices(runs, dtype, ends), rows_in_memory))


def _write(file: IO[bytes], ends: list[int], blocks: Iterable[Rows]) -> None:
    """Append one sorted run."""
    n = 0
    for block in blocks:
        file.write(block.tobytes())
        n += len(block)
    file.flush()
    ends.append(ends[-1] + n)


def _slices(file: IO[bytes], dtype: np.dtype[Any], ends: Sequence[int]) -> list["_Slice"]:
    return [_Slice(file, dtype, start=start, stop=stop) for start, stop in pairwise(ends)]


def merge_sorted(
    sources: Sequence[RowSource], dtype: np.dtype[Any], *, within: Range, bytes_in_memory: int
) -> Iterator[Rows]:
    """Yield the distinct rows of several sorted files whose first field is in the range, in order, in blocks."""
    with ExitStack() as stack:
        keep = len(sources) <= _OPEN_FILES
        slices = []
        for source in sources:
            with ExitStack() as brief:
                file = (stack if keep else brief).enter_context(open(source.path, "rb"))
                start, stop = (find_row(file, dtype, value) for value in (within.first, within.last + 1))
            if start < stop:
                opened = file if keep else source.path
                slices.append(_Slice(opened, dtype, start=start, stop=stop, adapt=source.adapt))
        yield from _merge(slices, bytes_in_memory // dtype.itemsize)


def count_rows(paths: Sequence[Path], dtype: np.dtype[Any]) -> int:
    """Count the rows of all files, by the files' sizes."""
    return sum(path.stat().st_size // dtype.itemsize for path in paths)


def find_row(file: IO[bytes], dtype: np.dtype[Any], value: int) -> int:
    """Count the rows of a sorted file whose first field is below `value`; reads about 25 rows of a large file."""
    assert dtype.names is not None
    low, high = 0, os.fstat(file.fileno()).st_size // dtype.itemsize
    while low < high:
        middle = (low + high) // 2
        row = np.frombuffer(os.pread(file.fileno(), dtype.itemsize, middle * dtype.itemsize), dtype)
        if int(row[dtype.names[0]][0]) < value:
            low = middle + 1
        else:
            high = middle
    return low


class _Slice:
    """The rows `start` to `stop` of a file, read in parts."""

    def __init__(
        self,
        file: IO[bytes] | Path,
        dtype: np.dtype[Any],
        *,
        start: int,
        stop: int,
        adapt: Callable[[Rows], Rows] | None = None,
    ) -> None:
        self._file, self._dtype, self._next, self._stop, self._adapt = file, dtype, start, stop, adapt
        self.rows = np.empty(0, dtype)

    @property
    def is_read(self) -> bool:
        """Return whether `rows` holds all that is left."""
        return self._next == self._stop

    def fill(self, n_rows: int) -> None:
        """Read until `rows` holds `n_rows`, or all that are left."""
        n_new = min(n_rows - len(self.rows), self._stop - self._next)
        if n_new <= 0:
            return
        n_bytes, position = n_new * self._dtype.itemsize, self._next * self._dtype.itemsize
        if isinstance(self._file, Path):
            with open(self._file, "rb") as file:
                data = os.pread(file.fileno(), n_bytes, position)
        else:
            data = os.pread(self._file.fileno(), n_bytes, position)
        assert len(data) == n_bytes, self._file
        new = np.frombuffer(data, self._dtype)
        new = new if self._adapt is None else self._adapt(new)
        self.rows = np.concatenate([self.rows, new]) if len(self.rows) else new
        self._next += n_new


def _merge(slices: Sequence[_Slice], rows_in_memory: int) -> Iterator[Rows]:
    """Fill every slice to the same number of rows, and yield the rows that no unread row can precede.

    If the rows are spread evenly, these are nearly all rows in memory. A round therefore costs one read and two short
    searches per file, and one sort.
    """
    slices = list(slices)
    while slices:
        n_each = max(rows_in_memory // len(slices), _MIN_ROWS_READ)
        for part in slices:
            part.fill(n_each)
        bounds = [part.rows[-1].item() for part in slices if not part.is_read]
        parts = []
        for part in slices:
            n = _rows_up_to(part.rows, min(bounds)) if bounds else len(part.rows)
            parts.append(part.rows[:n])
            part.rows = part.rows[n:]
        block = np.concatenate(parts)
        if len(block):
            yield _distinct(sort_rows(block) if len(slices) > 1 else block)
        slices = [part for part in slices if len(part.rows) or not part.is_read]


def _rows_up_to(rows: Rows, bound: tuple[int, ...]) -> int:
    """Count the sorted rows that do not come after `bound`."""
    assert rows.dtype.names is not None
    low, high = 0, len(rows)
    for name, value in zip(rows.dtype.names, bound, strict=True):
        if low == high:
            break
        column = np.ascontiguousarray(rows[name][low:high])
        wanted = column.dtype.type(value)  # numpy would compare a Python int as a float
        low, high = (
            low + int(np.searchsorted(column, wanted, "left")),
            low + int(np.searchsorted(column, wanted, "right")),
        )
    return high


def _distinct(rows: Rows) -> Rows:
    """Return the sorted rows without those equal to the one before."""
    if len(rows) < 2:
        return rows
    assert rows.dtype.names is not None
    different = np.zeros(len(rows) - 1, dtype=bool)
    for name in rows.dtype.names:
        different |= rows[name][1:] != rows[name][:-1]
    return rows if different.all() else rows[np.concatenate(([True], different))]

"""External sorting matches numpy's sort in memory, with memory for a few rows only."""

from itertools import pairwise

import numpy as np
import pytest

from data_prep.dedup.sorted_rows import (
    LAST,
    Limits,
    Range,
    RowSource,
    count_rows,
    even_ranges,
    merge_sorted,
    write_sorted,
)

THREE = np.dtype([("a", "<u8"), ("b", "<u8"), ("c", "<u4")])


def some_rows(rng, n, *, n_keys):
    """Rows with few different keys at both ends of 64 bits, where floats cannot represent neighbouring numbers."""
    rows = np.empty(n, THREE)
    rows["a"] = rng.choice(np.array([0, 1, 2**53, 2**53 + 1, 2**63, LAST - 1, LAST] * n_keys, np.uint64), n)
    rows["a"] ^= rng.integers(0, n_keys, n).astype(np.uint64) << np.uint64(20)
    rows["b"] = rng.choice(np.array([5, 2**62, 2**64 - 3], np.uint64), n)
    rows["c"] = rng.integers(0, 4, n)
    return rows


@pytest.mark.parametrize(("n_keys", "room"), [(1, 128), (500, 128), (500, 3)])  # the last needs two rounds
def test_files_have_the_distinct_rows_in_order(tmp_path, n_keys, room):
    rng = np.random.default_rng(n_keys)
    parts = [some_rows(rng, n, n_keys=n_keys) for n in (3000, 1, 700, 0)]
    for i, part in enumerate(parts):
        with write_sorted(tmp_path / str(i), THREE, bytes_in_memory=room * THREE.itemsize) as append:
            append(part[:1000])
            append(part[1000:])
        assert np.array_equal(np.fromfile(tmp_path / str(i), THREE), np.unique(part))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"], "no runs are left"
    everything = np.unique(np.concatenate(parts))
    assert count_rows([tmp_path / str(i) for i in range(4)], THREE) == sum(len(np.unique(part)) for part in parts)
    sources = [RowSource(tmp_path / str(i)) for i in range(4)]
    ranges = [Range(), Range(1, 2**53), Range(2**63, LAST - 1), Range(LAST, LAST), *even_ranges(7)]
    for within in ranges:
        blocks = list(merge_sorted(sources, THREE, within=within, bytes_in_memory=300 * THREE.itemsize))
        keys = everything["a"].tolist()
        expected = everything[[within.first <= key <= within.last for key in keys]]
        assert np.array_equal(np.concatenate([np.empty(0, THREE), *blocks]), expected)
        assert all(0 < len(block) <= 400 for block in blocks)


def test_more_files_than_may_be_open_are_merged(tmp_path):
    rng = np.random.default_rng(0)
    rows = some_rows(rng, 4000, n_keys=50)
    for i in range(300):
        with write_sorted(tmp_path / str(i), THREE, bytes_in_memory=50 * THREE.itemsize) as append:
            append(rows[i::300])

    def double(block):
        block = block.copy()
        block["c"] *= 2
        return block

    sources = [RowSource(tmp_path / str(i), double) for i in range(300)]
    merged = np.concatenate(list(merge_sorted(sources, THREE, within=Range(), bytes_in_memory=1000 * THREE.itemsize)))
    assert np.array_equal(merged, np.unique(double(rows)))


def test_ranges_cover_all_numbers_once():
    for n in (1, 3, 1024):
        ranges = even_ranges(n)
        assert (ranges[0].first, ranges[-1].last) == (0, LAST)
        assert all(b.first == a.last + 1 for a, b in pairwise(ranges))
    limits = Limits(rows_per_task=10, max_tasks=4, max_joining=3)
    assert limits.n_tasks(1000, joining=True) == 3
    assert [limits.n_tasks(n) for n in (0, 10, 11, 40, 1000)] == [1, 1, 2, 4, 4]

"""Windows cover every token, and rows in packing order are nearly full."""

from itertools import pairwise

import numpy as np
import pytest

from gpt.post_training.sequence_scores import pack
from launch.moderation.windows import largest, packing_order, windows_of


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 14, 15, 40, 41])
def test_windows_cover_a_text_and_overlap(length):
    ids = np.arange(length)
    windows = windows_of(ids, window=8, end=99)
    assert all(len(one) <= 8 and one[-1] == 99 for one in windows)
    np.testing.assert_array_equal(np.unique(np.concatenate([one[:-1] for one in windows])), ids)
    for first, second in pairwise(windows):
        assert first[0] < second[0] <= first[-2]  # they share a token at least
    if length <= 7:
        assert len(windows) == 1
    else:
        assert windows[-1][-2] == length - 1
        assert {len(one) for one in windows} == {8}


def test_the_largest_score_of_each_category_counts():
    scores = np.array([[0.1, 0.9], [0.5, 0.2], [0.3, 0.3]])
    np.testing.assert_array_equal(largest(scores, [2, 1]), [[0.5, 0.9], [0.3, 0.3]])


def test_consecutive_sequences_in_packing_order_fill_rows():
    lengths = np.random.default_rng(0).integers(1, 700, size=500).tolist()
    order = packing_order(lengths, 1024)
    assert sorted(order) == list(range(500))
    rows = pack([lengths[i] for i in order], 1024)
    assert len(rows) <= np.ceil(sum(lengths) / 1024) * 1.02 + 1

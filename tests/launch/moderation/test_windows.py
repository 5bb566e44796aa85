"""Windows cover every token, and rows in packing order are nearly full."""

from itertools import pairwise

import numpy as np
import pytest

from gpt.post_training.sequence_scores import pack
from launch.moderation.windows import batch_shape, largest, windows_of


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


@pytest.mark.parametrize(("n", "most"), [(1, 700), (3, 400), (20, 700), (500, 700), (40, 1500)])
def test_batches_have_little_padding(n, most):
    """In `order`, consecutive sequences fill rows; of the tokens of all batches at most 15% are padding."""
    lengths = np.random.default_rng(n).integers(1, most, size=n).tolist()
    shape = batch_shape(lengths, batch_tokens=4096, multiple=4)
    assert sorted(shape.order) == list(range(n))
    assert shape.row_tokens % 4 == 0
    rows = pack([lengths[i] for i in shape.order], shape.row_tokens)
    n_batches = -(-len(rows) // shape.rows_at_once)
    tokens = n_batches * shape.rows_at_once * shape.row_tokens
    assert shape.rows_at_once * shape.row_tokens <= max(4096, shape.row_tokens)
    assert tokens <= 1.15 * sum(lengths) + 64


def test_data_ranks_share_the_rows():
    shape = batch_shape([600] * 5, batch_tokens=10**6, data_size=2)
    assert (shape.row_tokens, shape.rows_at_once) == (640, 3)


def test_a_server_meets_few_shapes():
    draw = np.random.default_rng(0)
    shapes = set()
    for _ in range(500):
        lengths = draw.integers(1, 300, size=draw.integers(1, 30)).tolist()
        found = batch_shape(lengths, batch_tokens=2048)
        shapes.add((found.row_tokens, found.rows_at_once))
    assert len(shapes) < 60

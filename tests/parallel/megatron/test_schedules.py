"""Micro-batches under Megatron's schedules, with our loss."""

import pytest


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_totals_are_those_of_each_micro_batch_in_order(parts, layout):
    for rank in parts:
        assert [count for _, count in rank[layout]["schedules"]] == [5, 20, 32]


def test_an_interleaved_schedule_fills_its_last_round_without_counting_it(parts):
    """3 micro-batches on 2 pipeline ranks, whose first and last stage hold no block."""
    first, last = (rank["pipeline"]["schedules"] for rank in parts)
    assert first == []
    expected = parts[0]["tensor"]["schedules"]
    assert [count for _, count in last] == [5, 20, 32]
    assert all(abs(ours - loss) < 1e-5 * loss for (ours, _), (loss, _) in zip(last, expected, strict=True))

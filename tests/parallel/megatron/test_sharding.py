"""A tensor rank's part of a weight, over data ranks and over tensor ranks, as the native engine spreads it."""

import pytest


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_a_part_survives_the_way_over_the_ranks(parts, layout):
    """On data ranks also 33 rows, which 2 ranks do not share evenly."""
    assert [rank[layout]["sharding"] for rank in parts] == [[], []]


def test_a_rank_may_hold_no_rows(parts):
    assert [rank["uneven"] for rank in parts] == [[[7.0] * 3] * 2] * 2

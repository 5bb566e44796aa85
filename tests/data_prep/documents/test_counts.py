"""Counts of documents add up."""

import pytest

from data_prep.documents.counts import Counts, Tally, total


def test_counts_must_add_up():
    tally = Tally("step")
    tally.keep(10, 8)
    tally.drop("short", 3)
    tally.drop("short", 4)
    counts = tally.counts()
    assert counts == Counts("step", 3, 1, 17, 8, {"short": 2}, {"4": 1})
    assert Counts(**counts.as_dict()) == counts
    assert total([counts, Counts("other"), counts]) == [
        Counts("step", 6, 2, 34, 16, {"short": 4}, {"4": 2}),
        Counts("other"),
    ]
    with pytest.raises(AssertionError, match="cannot account for 1 of its 3 documents"):
        Counts("step", 3, 1, dropped={"short": 1})

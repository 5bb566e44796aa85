"""Saved tensors have the native engine's names, shapes, shards and starting values."""

import pytest


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_saved_tensors_are_those_of_the_native_engine(parts, layout):
    assert [rank[layout]["saved"] for rank in parts] == [[], []]

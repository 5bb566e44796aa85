"""Megatron's weights, whole. test_optimizer.py generates with copies of them."""

import pytest


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_whole_weights_are_those_of_the_native_engine(parts, layout):
    assert [rank[layout]["inference"] for rank in parts] == [[], []]

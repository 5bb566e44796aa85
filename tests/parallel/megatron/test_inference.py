"""Megatron's weights, whole, and as our stages."""

import pytest


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_whole_weights_are_those_of_the_native_engine(parts, layout):
    for rank in parts:
        wrong, kinds = rank[layout]["inference"]
        assert wrong == []
        assert kinds == [["torch.bfloat16", False]]

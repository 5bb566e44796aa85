"""Megatron's fp32 weights and moments, read and written whole."""

import pytest


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_tensors_are_read_as_they_were_written(parts, layout):
    for rank in parts:
        wrong, steps_before, steps, in_torch, _ = rank[layout]["state"]
        assert wrong == []
        assert (steps_before, steps) == (1, 9)
        assert in_torch


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(parts, layout):
    assert [rank[layout]["skips"] for rank in parts] == [[True, True, 0]] * 2


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_an_engine_without_an_optimizer_keeps_fp32_weights_and_evaluates(parts, layout):
    for rank in parts:
        same, loss, replicas, generated = rank[layout]["untrained"]
        assert same
        assert abs(loss - 4.79) < 0.1, "near the entropy of 120 equal tokens"
        assert replicas is None
        assert generated == 3


def test_data_ranks_share_the_moments_out(parts):
    held = [rank["data"]["state"][4] for rank in parts]
    whole = sum(shape_size(shape) for shape, *_ in parts[0]["data"]["parameters"].values())
    assert sum(held) == whole
    assert max(held) < 0.6 * whole


def shape_size(shape):
    size = 1
    for length in shape:
        size *= length
    return size

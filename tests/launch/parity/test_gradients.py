"""Digests of gradients against numpy, and how differences between them count."""

import math

import numpy as np
import pytest
import torch

from gpt.model.initialisation import hash_bits
from launch.parity import gradients
from launch.parity.gradients import FLOOR, PROJECTIONS, gradient_differences, gradient_digest, merged

N = 400  # elements


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def weights_of(name: str, size: int, *, seed: int) -> np.ndarray:
    """The weight of each element in each projection, (size, PROJECTIONS): the digests of gradients with one 1."""
    return np.array([gradient_digest(name, row, seed=seed)[1:] for row in torch.eye(size)])


def test_a_digest_is_the_norm_and_weighted_sums_of_the_elements() -> None:
    gradient = drawn(7, 5)
    norm, *projections = gradient_digest("head.weight", gradient, seed=3)
    exact = gradient.double().numpy().flatten()
    assert norm == pytest.approx(float(np.linalg.norm(exact)), rel=1e-12)
    assert len(projections) == PROJECTIONS
    assert projections == pytest.approx(list(exact @ weights_of("head.weight", 35, seed=3)), rel=1e-12)


def test_the_weights_depend_on_seed_name_and_position_and_have_variance_1() -> None:
    weights = weights_of("a", N, seed=1)
    assert np.array_equal(weights, weights_of("a", N, seed=1))
    columns = np.hstack([weights, weights_of("a", N, seed=2), weights_of("b", N, seed=1)])
    assert len(np.unique(columns)) > columns.size - 100
    covariance = columns.T @ columns / N
    assert np.allclose(covariance, np.eye(9), atol=5 / math.sqrt(N))
    assert np.allclose(columns.mean(0), 0, atol=5 / math.sqrt(N))


def test_the_digest_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = drawn(1000)
    whole = gradient_digest("a", gradient, seed=1)
    monkeypatch.setattr(gradients, "CHUNK", 64)
    assert gradient_digest("a", gradient, seed=1) == pytest.approx(whole, rel=1e-12)
    assert hash_bits(torch.arange(3), 5).tolist() == hash_bits(torch.arange(5), 5)[:3].tolist()


def test_every_error_of_a_gradient_shows_in_proportion() -> None:
    gradient = drawn(300, 10)
    reference = {"a": gradient_digest("a", gradient, seed=1)}
    swapped, scaled, shuffled = gradient.clone(), gradient * 0.5, gradient.flatten().roll(1).view(300, 10)
    swapped[0, 0], swapped[299, 9] = gradient[299, 9], gradient[0, 0]
    for wrong, least in ((scaled, 0.3), (shuffled, 0.3), (swapped, 1e-3)):
        found = gradient_differences({"a": gradient_digest("a", wrong, seed=1)}, reference)["a"]
        error = float((wrong - gradient).norm() / gradient.norm())
        assert least < found < 4 * error
    assert gradient_differences(reference, reference) == {"a": 0.0}


def test_rounding_in_a_gradient_of_zero_is_no_difference() -> None:
    reference = {"big": [1.0, 1.0, 0.0, 0.0], "zero": [1e-10, 1e-10, 0.0, 0.0]}
    other = {"zero": [3e-10, -3e-10, 0.0, 0.0], "big": [1.0, 1.0, 0.0, 0.0]}
    found = gradient_differences(other, reference)
    assert list(found) == ["big", "zero"], "the order of the reference"
    assert found["zero"] == pytest.approx(4e-10 / FLOOR)
    assert gradient_differences({"big": [math.nan, 1.0, 0.0, 0.0]}, reference) == {
        "big": pytest.approx(math.nan, nan_ok=True),
        "zero": math.inf,
    }
    assert gradient_differences({**other, "new": [0.0] * 4}, reference)["new"] == math.inf


def test_ranks_that_disagree_on_a_gradient_make_its_digest_nan() -> None:
    right, rounded, wrong = [2.0, 1.0, 0.5, -1.0], [2.0, 1.0 + 1e-9, 0.5, -1.0], [2.0, 1.0, 0.5, 1.0]
    assert merged([("a", right), ("b", right), ("a", rounded)]) == {"a": right, "b": right}
    for pair in ((right, wrong), (wrong, right)):
        found = merged([("a", digest) for digest in pair])
        assert all(map(math.isnan, found["a"]))
        assert math.isnan(gradient_differences(found, {"a": right})["a"])

"""Exact intervals equal scipy's; bootstrap intervals cover and are reproducible."""

import math
import tracemalloc

import numpy as np
import pytest

from gpt.moderation.measures.intervals import difference_interval, exact_interval, measure_interval
from gpt.moderation.measures.ranking import average_precision, f1


@pytest.mark.parametrize("n", [1, 2, 7, 40, 300, 5_000])
def test_the_exact_interval_equals_scipy(n):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for successes in sorted({0, 1, n // 20, n // 3, n // 2, n - 1, n}):
        expected = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
        found = exact_interval(successes, n)
        assert found.low == pytest.approx(expected.low, rel=0, abs=1e-12)
        assert found.high == pytest.approx(expected.high, rel=0, abs=1e-12)


def test_the_exact_interval_without_trials_is_everything():
    found = exact_interval(0, 0)
    assert math.isnan(found.estimate)
    assert (found.low, found.high) == (0, 1)


def test_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        exact_interval(3, 2)


def test_a_bootstrap_of_a_share_agrees_with_the_normal_approximation():
    labels = np.repeat([1.0, 1.0], 200)
    scores = np.repeat([1.0, 0.0], 200)

    def recall(y, p, w):
        return float(w[p > 0.5].sum() / w.sum())

    found = measure_interval(recall, labels, scores, resamples=2_000)
    half = 1.96 * math.sqrt(0.25 / 400)
    assert found.estimate == 0.5
    assert found.low == pytest.approx(0.5 - half, abs=0.006)
    assert found.high == pytest.approx(0.5 + half, abs=0.006)


def test_the_bootstrap_is_a_function_of_the_seed_and_leaves_unknown_labels_out():
    rng = np.random.default_rng(0)
    labels, scores = (rng.random(100) < 0.2).astype(float), rng.random(100)
    first = measure_interval(average_precision, labels, scores, resamples=50)
    again = measure_interval(average_precision, np.append(labels, np.nan), np.append(scores, 0.7), resamples=50)
    assert first == again
    assert first.low <= first.estimate <= first.high


def test_undefined_resamples_do_not_count_and_no_text_gives_nan():
    found = measure_interval(average_precision, [1, 0, 0], [0.9, 0.2, 0.1], resamples=100)
    assert found.estimate == found.low == found.high == 1
    assert math.isnan(measure_interval(average_precision, [], []).low)
    assert math.isnan(measure_interval(average_precision, [0, 0], [0.1, 0.2], resamples=10).low)


def test_the_difference_of_two_versions_is_paired():
    rng = np.random.default_rng(1)
    labels = (rng.random(200) < 0.3).astype(float)
    first = rng.random(200)
    same = difference_interval(average_precision, labels, first, first, resamples=50)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    better = difference_interval(f1, labels, first * 0.4, labels, resamples=50)
    assert better.low > 0 or math.isnan(better.low)
    perfect = difference_interval(average_precision, labels, first, labels, resamples=100)
    assert perfect.low > 0


def test_memory_does_not_grow_with_the_resamples():
    labels = np.arange(1000) % 7 == 0
    tracemalloc.start()
    try:
        measure_interval(lambda y, p, w: float(w @ y), labels.astype(float), np.linspace(0, 1, 1000), resamples=300)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * 8 * 1000, "300 resamples of 1,000 texts in float64 are ten times that"

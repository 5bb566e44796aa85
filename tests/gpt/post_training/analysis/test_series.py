"""Running medians, and the spans in which they leave a band."""

import numpy as np
import pytest

from gpt.post_training.analysis.series import IterationSeries, Span, aligned, running_mean, span_outside


def series(*values, first=1):
    return IterationSeries(np.arange(first, first + len(values)), np.array(values, dtype=float))


def above_one(values):
    return values > 1


def test_a_running_median_needs_three_values_and_ignores_outliers():
    np.testing.assert_array_equal(series(1, 9, 2, 3, 50, 2).smooth(), [np.nan, np.nan, 2, 2.5, 3, 3])
    assert series(1, 2, 90, 1, 2, 7, 7, 7).start == 2
    assert series(1, 2, 90, 1, 2, 7, 7, 7).recent == 7


def test_a_span_begins_where_the_values_left_the_band():
    assert span_outside(series(*[0] * 10, *[2] * 10), above_one) == Span(11, 20, lasting=True)
    assert span_outside(series(*[0] * 10, *[2] * 10, *[0] * 10), above_one) == Span(11, 22, lasting=False)
    assert span_outside(series(0, 0, 9, 0, 0, 9, 0, 0), above_one) is None, "single values are noise"
    assert span_outside(series(*[2] * 10), above_one, after=4) == Span(5, 10, lasting=True)
    assert span_outside(series(*[2] * 10), above_one, least=20) is None


def test_a_short_return_does_not_end_a_span_and_the_newest_span_counts():
    values = [2] * 10 + [0] * 4 + [2] * 10
    assert span_outside(series(*values), above_one) == Span(1, 24, lasting=True)
    assert span_outside(series(*[2] * 10, *[0] * 20, *[2] * 10), above_one) == Span(31, 40, lasting=True)


def test_series_are_aligned_by_iteration():
    iterations, (a, b) = aligned(series(1, 2, 3), series(5, 6, 7, first=2))
    assert (iterations.tolist(), a.tolist(), b.tolist()) == ([2, 3], [2, 3], [5, 6])


def test_a_running_mean_equals_the_sum_over_its_window():
    values = np.random.default_rng(0).normal(size=30)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(30)]
    assert running_mean(values, 5) == pytest.approx(expected, abs=1e-12)

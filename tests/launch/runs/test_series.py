"""Long series are thinned: bounded, with exact means, extremes and newest values."""

import numpy as np
import pytest

from launch.runs.series import MAX_POINTS, RECENT, GrowingSeries, Series, settle


def grown(values, *, first=1):
    series = GrowingSeries()
    most = 0
    for number, value in enumerate(values):
        series.steps.append(first + number)
        series.values.append(value)
        if number % MAX_POINTS == 0:
            series.thin()
            most = max(most, len(series.values))
    return series.series(), most


def test_a_run_that_fits_is_kept_as_logged():
    values = np.arange(2 * MAX_POINTS - 1, dtype=np.float64)
    series, _ = grown(values)
    assert np.array_equal(series.values, values)
    assert series.extremes[0] is series.values
    assert series.recent.tolist() == values[-RECENT:].tolist()


@pytest.mark.parametrize("n", [2 * MAX_POINTS + 5, 300_001])
def test_a_long_series_has_bounded_points_with_exact_means_and_extremes(n):
    values = np.random.default_rng(0).normal(size=n)
    values[n // 2] = 1e6  # one spike
    series, most_logged = grown(values)
    assert most_logged <= 3 * MAX_POINTS
    assert len(series.steps) <= 2 * MAX_POINTS
    assert len({len(part) for part in (series.steps, series.values, *series.extremes)}) == 1
    bounds = [*(series.steps - 1).tolist(), n]
    for index in (0, 1, len(series.steps) // 2, len(series.steps) - 1):
        part = values[bounds[index] : bounds[index + 1]]
        low, high = series.extremes
        assert series.values[index] == pytest.approx(part.mean())
        assert (low[index], high[index]) == (part.min(), part.max())
    assert series.extremes[1].max() == 1e6
    assert series.recent.tolist() == values[-RECENT:].tolist()
    assert series.last_step == n
    assert series.scaled(0.5).extremes[1].max() == 5e5


def test_a_thinned_take_and_its_repetition_are_joined():
    long, _ = grown(np.ones(100_000))
    short = Series(np.arange(90_001, 90_011), np.full(10, 2.0))
    metrics, lost = settle([{"loss": long}, {"loss": short}])
    assert metrics["loss"].last_step == 90_010
    assert metrics["loss"].recent[-10:].tolist() == [2.0] * 10
    assert np.all(np.diff(metrics["loss"].steps) > 0)
    assert lost[0]["loss"].steps[0] >= 90_001
    assert lost[0]["loss"].last_step == 100_000

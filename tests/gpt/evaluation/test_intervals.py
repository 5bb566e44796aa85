"""Intervals against published values and simulated coverage."""

import math

import numpy as np
import pytest

from gpt.evaluation.intervals import Interval, bootstrap_interval, interval_text, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_values(successes, n, low, high):
    found = wilson_interval(successes, n)
    assert found.estimate == pytest.approx(successes / n)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_nothing_is_known_without_data():
    assert (wilson_interval(0, 0).low, wilson_interval(0, 0).high) == (0.0, 1.0)
    assert math.isnan(bootstrap_interval([]).estimate)
    one = bootstrap_interval([[1.0, 0.0]])
    assert (one.estimate, math.isnan(one.low)) == (0.5, True)


def test_groups_are_drawn_whole():
    """Ten votes on a prompt that all agree are one observation."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, size=100).astype(float).tolist()
    alone = bootstrap_interval([[value] for value in values], resamples=2000)
    copied = bootstrap_interval([[value] * 10 for value in values], resamples=2000)
    assert (alone.low, alone.high) == (copied.low, copied.high)
    wilson = wilson_interval(sum(values), 100)
    assert (alone.low, alone.high) == (pytest.approx(wilson.low, abs=0.02), pytest.approx(wilson.high, abs=0.02))


def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        groups = [(0.3 + 0.3 * rng.normal() + 0.2 * rng.normal(size=3)).tolist() for _ in range(40)]
        found = bootstrap_interval(groups, resamples=400)
        covered += found.low <= 0.3 <= found.high
    assert 0.9 <= covered / 200 <= 0.985


def test_an_interval_has_bounds_only_if_they_are_known():
    assert interval_text(Interval(0.5, 0.25, 0.75)) == "50.0% (25.0% to 75.0%)"
    assert interval_text(Interval(0.5, 0.25, 0.75), percent=False) == "0.5 (0.25 to 0.75)"
    assert interval_text(Interval(0.5, math.nan, math.nan)) == "50.0%"
    assert interval_text(Interval(*[math.nan] * 3)) == "no data"

"""The fit against numpy's least squares, and with a cost that would be negative."""

import numpy as np
import pytest

from parallel.planner.machine.least_squares import nonnegative_fit


def test_it_recovers_positive_costs():
    random = np.random.default_rng(0)
    rows = random.uniform(0.1, 1.0, (30, 4)) * [1.0, 1e-3, 1e3, 1.0]
    true = [1.1, 500.0, 2e-4, 0.3]
    measured = rows @ true
    found = nonnegative_fit(rows.tolist(), measured.tolist(), scales=measured.tolist(), expected=(None,) * 4)
    assert found == pytest.approx(true, rel=1e-4)
    best = np.linalg.lstsq(rows / measured[:, None], np.ones(30), rcond=None)[0]
    assert found == pytest.approx(best.tolist(), rel=1e-4)


def test_a_cost_that_would_be_negative_is_zero_and_the_others_are_best_without_it():
    rows = [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0)]
    measured = [0.5, 1.6, 2.5, 3.4]  # a line with a negative intercept
    slope, intercept = nonnegative_fit(rows, measured, scales=[1.0] * 4, expected=(None, None))
    assert intercept == 0.0
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert slope == pytest.approx(float(x @ measured / (x @ x)))


def test_a_factor_that_no_measurement_tells_keeps_its_expected_value():
    found = nonnegative_fit([(1.0, 0.0), (2.0, 0.0)], [3.0, 6.0], scales=[3.0, 6.0], expected=(None, 1.0))
    assert found == pytest.approx([3.0, 1.0])


def test_a_heavier_prior_outweighs_a_noisy_measurement():
    light, heavy = (
        nonnegative_fit([(0.2,)], [0.1], scales=[1.0], expected=(1.0,), prior_weight=weight)[0]
        for weight in (0.01, 1.0)
    )
    assert light == pytest.approx(0.5, abs=0.01)
    assert heavy == pytest.approx((0.2 * 0.1 + 1.0) / (0.2**2 + 1.0))

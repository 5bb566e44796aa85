"""Curves and grids hit their points, and follow powers between them."""

import pytest

from parallel.planner.machine.interpolation import SpeedGrid, TimeCurve


def test_a_curve_of_a_power_is_that_power_between_points():
    curve = TimeCurve({10: 1e-3, 1000: 1e-1, 100_000: 1e1})  # proportional to the size
    assert curve(10) == pytest.approx(1e-3)
    assert curve(300) == pytest.approx(3e-2)
    assert curve(1) == pytest.approx(1e-3)  # latency
    assert curve(1e6) == pytest.approx(1e2)
    assert curve(0) == 0.0


def test_a_grid_interpolates_in_every_direction_and_keeps_the_speed_of_its_edge():
    speeds = {(m, n): float(m * n**2) for m in (4, 16, 64) for n in (2, 8)}
    grid = SpeedGrid(speeds)
    assert grid(16, 8) == pytest.approx(1024)
    assert grid(8, 4) == pytest.approx(8 * 16)
    assert grid(1, 1) == pytest.approx(16)
    assert grid(1e9, 1e9) == pytest.approx(64 * 64)


def test_a_grid_point_that_was_not_measured_has_the_speed_of_its_smaller_neighbours():
    grid = SpeedGrid({(1, 1): 2.0, (1, 4): 8.0, (4, 1): 8.0})
    assert grid(4, 4) == pytest.approx(8.0)
    assert grid(2, 4) == pytest.approx(8.0)

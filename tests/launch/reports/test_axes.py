"""Axes and ticks of plots."""

import pytest

from launch.reports.axes import Axis, log_ticks, power_text, ticks


def test_ticks_are_round_numbers():
    assert ticks(0.0, 1.06, most=6) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0, 20_000, most=6) == [0, 5000, 10_000, 15_000, 20_000]
    assert log_ticks(0.17, 9.0, most=6) == pytest.approx([0.2, 0.5, 1, 2, 5])
    assert log_ticks(1e-9, 1e9, most=6) == pytest.approx([10.0**e for e in range(-9, 10, 4)])


def test_values_become_pixels_linearly_or_logarithmically():
    assert Axis(0, 10, 100, 200).pixel(2.5) == 125
    log = Axis(1, 100, 200, 0, log=True)
    assert (log.pixel(10), log.pixel(0.0)) == (pytest.approx(100), 200), "values below the axis are drawn at its end"


def test_powers_of_ten_are_short():
    assert [power_text(value) for value in (1e-6, 3e-6, 0.5, 100, 2e5)] == ["10⁻⁶", "3·10⁻⁶", "0.5", "100", "2·10⁵"]

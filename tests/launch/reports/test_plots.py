"""Plots of a run's page."""

import numpy as np

from launch.reports.axes import Axis
from launch.reports.plots import Mark, PlotLine, draw, merged
from launch.runs.series import Series


def test_marks_of_one_kind_in_one_column_are_merged():
    x = Axis(0, 10**6, 0, 500)
    groups = merged(x, [Mark(step, "fault", "") for step in (1, 2, 999_999, 2_000_000)] + [Mark(1, "restart", "")])
    assert [len(group) for group in groups] == [2, 1, 1]


def test_a_single_point_is_drawn():
    one = Series(np.array([3]), np.array([3.0]))
    picture = draw([PlotLine("flat", one, "s0")], marks=[], steps=(3, 3), label="one point", number=str)
    assert "nan" not in picture
    assert picture.count("<circle") == 1

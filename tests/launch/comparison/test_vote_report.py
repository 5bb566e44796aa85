"""Numbers of `triaxial compare --votes` as text; tests/launch/commands/judging/test_compare.py counts votes."""

import math

from gpt.evaluation.intervals import Interval
from launch.comparison.vote_report import interval_text


def test_an_interval_has_bounds_only_if_they_are_known():
    assert interval_text(Interval(0.5, 0.25, 0.75)) == "50.0% (25.0% to 75.0%)"
    assert interval_text(Interval(0.5, 0.25, 0.75), percent=False) == "0.5 (0.25 to 0.75)"
    assert interval_text(Interval(0.5, math.nan, math.nan)) == "50.0%"
    assert interval_text(Interval(*[math.nan] * 3)) == "no data"

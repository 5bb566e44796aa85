"""The plots are well-formed, and their points are where the values say."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from gpt.evaluation.intervals import Interval
from gpt.moderation.measures.summary import category_measures
from launch.moderation_report.measured import CategoryFigures
from launch.moderation_report.plots import forest, interval_text, learning_curve, precision_recall
from launch.moderation_report.rounds import Round
from launch.moderation_report.style import MODERATION


def parts(picture, tag, name):
    return [one for one in ET.fromstring(picture).iter(tag) if name in one.get("class", "").split()]


def test_intervals_without_bounds_are_hollow():
    rows = [("A <", [Interval(0.5, 0.25, 0.75), Interval(0.9, math.nan, math.nan)]), ("B", [Interval(*[math.nan] * 3)])]
    picture = forest(rows, label="l")
    (whisker,), (dot,), (hollow,) = (
        parts(picture, "path", "whisker"),
        parts(picture, "circle", "dot"),
        parts(picture, "circle", "hollow"),
    )
    start, end = (float(x) for x in whisker.get("d")[1:].replace("H", " ").split()[::2])
    assert float(dot.get("cx")) == pytest.approx((start + end) / 2, abs=0.1)
    assert float(hollow.get("cx")) > end
    assert [one.text for one in ET.fromstring(picture).iter("text")][-1] == "undefined"


def test_names_have_room_and_long_ones_are_cut():
    """19 px bold on a phone needs about 12 units a letter; the picture is 600 wide."""
    for name, shown in (("broken", "broken"), ("threatening", "threatening"), ("a" * 60, "a" * 17 + "\u2026")):
        (text,) = parts(forest([(name, [Interval(0.5, 0.25, 0.75)])], label="l"), "text", "name")
        assert text.text == shown
        assert float(text.get("x")) >= 12 * len(shown)
        assert float(text.get("x")) < 300


def test_precision_is_drawn_in_steps():
    labels, scores = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.9, 0.8, 0.7, 0.1])
    (one,) = category_measures(labels[:, None], scores[:, None], ["A"], resamples=2)
    curve = np.array([[0.5, 1.0], [0.5, 0.5], [1.0, 2 / 3], [1.0, 0.5]])
    (line,) = parts(precision_recall([CategoryFigures(one, curve, ())]), "path", "line")
    points = np.array([point.split() for point in line.get("d")[1:].split("L")], dtype=float)
    left, right, top, bottom = 34, 212, 8, 196
    recall = (points[:, 0] - left) / (right - left)
    precision = (points[:, 1] - bottom) / (top - bottom)
    np.testing.assert_allclose(recall, [0, 0.5, 0.5, 0.5, 0.5, 1, 1, 1], atol=1e-3)
    np.testing.assert_allclose(precision, [1, 1, 0.5, 0.5, 2 / 3, 2 / 3, 0.5, 0.5], atol=1e-3)


def test_the_learning_curve_has_a_point_for_each_round():
    undefined = Interval(*[math.nan] * 3)
    rounds = [Round(n, (("any", Interval(v, v - 0.1, v + 0.1)), ("A", undefined))) for n, v in ((100, 0.4), (300, 0.6))]
    picture = learning_curve(rounds, ["any", "A"])
    dots = parts(picture, "circle", "dot")
    assert len(dots) == 2
    assert float(dots[0].get("cx")) < float(dots[1].get("cx"))
    assert float(dots[0].get("cy")) > float(dots[1].get("cy"))
    (tick,) = (one for one in ET.fromstring(picture).iter() if one.text == "0.75")
    on_a_phone = 19 * 0.64 * 4  # its font in the style, the width of a digit, four characters
    assert float(tick.get("x")) > on_a_phone, "else it is cut off on the left"


def test_intervals_in_words():
    assert interval_text(Interval(0.5, 0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert interval_text(Interval(0.5, math.nan, math.nan)) == "0.500"
    assert interval_text(Interval(*[math.nan] * 3)) == "undefined"


def test_the_style_loads_nothing():
    assert "url(" not in MODERATION
    assert "@import" not in MODERATION

"""The tables show the right numbers in the right cells, and escape every name."""

import numpy as np

from gpt.evaluation.intervals import Interval
from gpt.moderation.measures.ranking import Confusion
from gpt.moderation.measures.summary import category_measures
from launch.moderation_report.measured import CategoryFigures, ReportFigures, VersionFigures
from launch.moderation_report.tables import confusion_card, gains_table, measures_table

NAME = "<b>&"


def figures(*gains):
    labels, scores = np.array([[1.0], [0.0], [1.0]]), np.array([[0.9], [0.8], [0.2]])
    (one,) = category_measures(labels, scores, [NAME], resamples=2)
    assert one.confusion == Confusion(1, 1, 1, 0)
    own = (CategoryFigures(one, np.empty((0, 2)), ()),)
    return ReportFigures((VersionFigures(NAME, "", own), VersionFigures("new", "", own)), gains, 3)


def test_names_are_escaped_and_few_positives_are_said():
    page = measures_table(figures(), {NAME: NAME})
    assert "<b>" not in page
    assert page.count("few positives") == 6
    assert "<td class=count rowspan=2>3</td><td class=count rowspan=2>2</td>" in page


def test_the_verdict_follows_the_interval():
    for low, high, verdict in ((0.1, 0.3, "better"), (-0.3, -0.1, "worse"), (-0.1, 0.3, "no clear difference")):
        assert f"<td class=word>{verdict}</td>" in gains_table(figures(Interval((low + high) / 2, low, high)))
    few = gains_table(figures(Interval(0.1, np.nan, np.nan)))
    assert "too few positives to say" in few
    assert "<th class=word>verdict</th>" in few, "above words, on the left"


def test_confusion_has_shares_of_rows():
    card = confusion_card(figures().versions[0].categories[0].measures, NAME)
    assert "<b>" not in card
    assert card.count("<small>50.0%</small>") == 2
    assert "<small>100.0%</small>" in card

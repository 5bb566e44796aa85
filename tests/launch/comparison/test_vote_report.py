"""`triaxial compare --votes` as a table; tests/launch/commands/judging/test_compare.py counts the votes of files."""

import math

from gpt.evaluation.intervals import Interval
from launch.comparison.vote_report import report
from launch.comparison.win_rates import VoteSummary


def test_figures_without_votes_are_shown_as_no_data(capsys):
    unknown = Interval(*[math.nan] * 3)
    known = Interval(0.5, 0.25, 0.75)
    figures = {"agreement": unknown, "agreement_with_ties": unknown, "left_chosen": known, "longer_chosen": unknown}
    emitted = []
    report(VoteSummary(n_votes=1, labellers={"Ann": 1}, win_rates=[], **figures), 2, emitted.append)
    text = capsys.readouterr().out
    assert "1 votes: Ann 1" in text
    assert "2 earlier votes by the same labeller" in text
    assert "labellers agree, ties left out: no data" in text
    assert "the first answer was chosen: 50.0% (25.0% to 75.0%)" in text
    assert emitted[0]["left_chosen"] == {"estimate": 0.5, "low": 0.25, "high": 0.75}

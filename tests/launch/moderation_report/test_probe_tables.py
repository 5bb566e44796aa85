"""The tables of probes show the right numbers in the right cells, and escape every name."""

from launch.moderation_report.probe_tables import (
    heat_map,
    perturbations_map,
    reduction_table,
    slices_table,
    word_bars,
)
from launch.moderation_report.probes import (
    FunctionalCell,
    FunctionalSuite,
    GapOfCategory,
    ProbeResults,
    ReducedTexts,
    SliceOfTexts,
)


def test_a_worse_function_is_darker():
    cells = {("f <i>", ""): FunctionalCell(10, 9), ("g", ""): FunctionalCell(10, 0), ("g", "t"): FunctionalCell(0, 0)}
    page = heat_map([("v1", FunctionalSuite("s", "H", cells))])
    assert "<i>" not in page
    assert "--p:7%" in page
    assert "--p:70%" in page
    assert page.count("class=heat ") == 2


def test_gaps_point_to_their_side():
    page = word_bars(GapOfCategory("H", 8, 0.1, 0.2, None, (("low", -0.2, 4), ("high <i>", 0.1, 4))))
    assert "<i>" not in page
    assert page.index("high") < page.index(">low<")
    assert "left:50%;width:25.0%" in page
    assert "left:0.0%;width:50.0%" in page


def test_texts_that_escape_are_darker():
    own = {("H <i>", "leet <i>"): FunctionalCell(4, 1), ("H <i>", "spacing"): FunctionalCell(4, 4)}
    page = perturbations_map([("v1", ProbeResults("m", still_flagged=own))])
    assert "<i>" not in page
    assert ">25</td>" in page
    assert ">100</td>" in page


def test_slices_without_a_positive_have_no_number():
    page = slices_table([SliceOfTexts("language", "de <i>", 30, (("H", 0.5, 3), ("V", None, 0)))])
    assert "<i>" not in page
    assert "<td>0.500<small>3 positive</small></td><td>&ndash;<small>0 positive</small></td>" in page


def test_reduction_shows_both_lengths():
    page = reduction_table([("v <i>", ReducedTexts("H", 50, 722.0, 16.0))])
    assert "<i>" not in page
    assert "<td>722</td><td>16</td>" in page

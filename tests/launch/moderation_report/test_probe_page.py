"""Probes of two versions are shown together, and a part without results is left out."""

from launch.moderation_report.probe_page import probes_part
from launch.moderation_report.probes import FunctionalCell, FunctionalSuite, GapOfCategory, ProbeResults


def test_only_what_was_probed_is_shown():
    assert probes_part(["v1"], [[]]) == ""
    assert probes_part(["v1"], [[ProbeResults("m")]]) == ""


def test_two_versions_of_a_suite_are_one_map_and_the_newest_version_has_the_words():
    suites = [FunctionalSuite("s", "H", {("f", ""): FunctionalCell(10, n)}) for n in (4, 9)]
    gaps = [GapOfCategory("H", 8, range_, 0.5, 0.1, ((word, 0.1, 4),)) for range_, word in ((0.3, "old"), (0.2, "new"))]
    files = [[ProbeResults("m", (suite,), (gap,))] for suite, gap in zip(suites, gaps, strict=True)]
    page = probes_part(["v1", "v2"], files)
    assert page.count("<table class=heats>") == 1
    assert page.index(">40</td>") < page.index(">90</td>")
    assert "Words with the largest gaps: H, v2" in page
    assert ">old<" not in page

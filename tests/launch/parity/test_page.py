"""The page of `triaxial parity`: verdict, picture, layouts, worst gradients; names from outside are escaped."""

import math

from launch.parity.page import parity_page
from launch.parity.ranks import LayoutResult
from launch.parity.report import ParityReport, ResumeRow, Row, Tolerances
from parallel.layout.config import ParallelConfig
from parallel.planner.search import Choice, Skipped


def row(name: str, difference: float, gradients: dict[str, float]) -> Row:
    result = LayoutResult(name, [5.0, 4.0], [1.0, 1.0], "aa", 1.0)
    return Row(Choice(ParallelConfig(), 1), result, [difference] * 2, [0.0] * 2, True, gradients)


def page(*rows: Row) -> str:
    reference = [row("one process", 0.0, {})]
    resumes = [ResumeRow("native", "deepspeed", [4.5, 4.25], [0.0, 1e-9])]
    skipped = [Skipped("offload=true", "needs <CUDA>")]
    report = ParityReport("fp32", 2, Tolerances(1e-5, 1e-4, 1e-4), reference, [], [*rows], skipped, resumes)
    return parity_page(report, recipe="<b>mine.toml")


def test_a_passing_page_has_every_layout_and_no_failure() -> None:
    text = page(row("tensor=2", 1e-7, {"a.weight": 1e-8, "b.weight": 3e-6}))
    assert "parity: PASSED: all 1 layouts agree" in text
    assert "<b>mine" not in text
    assert "needs &lt;CUDA&gt;" in text
    assert text.index("b.weight") < text.index("a.weight"), "the largest difference comes first"
    assert "4.250000" in text
    assert "problem>" not in text
    assert "<details><summary>tensor=2: up to 3.0e-06" in text
    assert "<script" not in text


def test_a_failing_page_names_the_layout_and_opens_its_gradients() -> None:
    text = page(row("data=2", 1e-3, {"a.weight": math.nan, "b.weight": 2e-2, "c.weight": 0.0}))
    assert "<tr class=failed>" in text
    assert "data=2: the loss of step 1 differs by 1.0e-03, above --tolerance 1e-05" in text
    assert "<details open>" in text
    assert "2 of 3 parameters above the tolerance" in text
    assert text.index("<td class=word>a.weight</td>") < text.index("<td class=word>b.weight</td>"), "NaN comes first"

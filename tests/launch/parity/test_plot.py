"""The picture of `triaxial parity`: a line for each layout over the steps, and the tolerance."""

import re
import xml.etree.ElementTree as ET

import pytest

from launch.parity.plot import DRAWN_AS_ZERO, LEFT, RIGHT, draw_differences
from launch.parity.ranks import LayoutResult
from launch.parity.report import ParityReport, ResumeRow, Row, Tolerances
from parallel.layout.config import ParallelConfig
from parallel.planner.search import Choice

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str, *differences: float) -> Row:
    losses = [5.0] * len(differences)
    return Row(
        Choice(ParallelConfig(), 1),
        LayoutResult(name, losses, losses, "aa", 1.0),
        [*differences],
        [*differences],
        True,
        {},
    )


def picture(
    *rows: Row, steps: int = 3, yardsticks: list[Row] | None = None, resumes: list[ResumeRow] | None = None
) -> ET.Element:
    reference = [row("one process", *[0.0] * steps)]
    return ET.fromstring(
        draw_differences(
            ParityReport(
                "<bf16>", steps, Tolerances(1e-5, 1e-4, 1e-4), reference, yardsticks or [], [*rows], [], resumes or []
            )
        )
    )


def curves(drawn: ET.Element) -> dict[str, list[tuple[float, float]]]:
    """The points of each line that has a name, in pixels."""
    found = {}
    for path in drawn.iter(f"{SVG}path"):
        title = path.find(f"{SVG}title")
        if title is not None and title.text:
            points = path.attrib["d"].strip("M").split("L")
            found[title.text] = [(float(x), float(y)) for x, y in (point.split() for point in points)]
    return found


def test_each_difference_is_at_its_step_and_height() -> None:
    """The vertical axis is logarithmic: equal ratios are equally far apart. Zero is drawn as 1e-10."""
    drawn = curves(picture(row("a", 1e-5, 1e-7, 1e-9), row("b <&>", 0.0, 1e-10, 0.0)))
    assert list(drawn) == ["tolerance 1e-05", "a", "b <&>"]
    assert [x for x, _ in drawn["a"]] == [LEFT, (LEFT + RIGHT) / 2, RIGHT]
    heights = [y for _, y in drawn["a"]]
    assert heights[0] == drawn["tolerance 1e-05"][0][1]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.11)
    assert len({y for _, y in drawn["b <&>"]}) == 1
    assert DRAWN_AS_ZERO == 1e-10
    assert drawn["b <&>"][0][1] > heights[2], "below 1e-9"


def test_the_picture_holds_every_line_and_a_legend_that_fits() -> None:
    rows = [row(f"layout {i} with a long name" * 2, 1e-6, 3.0, 1e-12) for i in range(40)]
    drawn = picture(*rows, yardsticks=[row("split", 0.0, 1e-7, 0.0)])
    width, height = map(float, drawn.attrib["viewBox"].split()[2:])
    points = [point for line in curves(drawn).values() for point in line]
    assert len(points) == 42 * 3
    assert all(0 < x < width and 0 < y < height for x, y in points)
    legend = [text for text in drawn.iter(f"{SVG}text") if re.match("layout|split|tolerance", text.text or "")]
    assert len(legend) == 42
    assert all(float(text.attrib["y"]) < height for text in legend)
    styles = {(path.get("class"), path.get("style")) for path in drawn.iter(f"{SVG}path") if path.get("style")}
    assert len(styles) == 1 + 28, "four kinds of dashes in seven colours, then again; and the tolerance"


def test_one_step_can_be_drawn_and_text_is_escaped() -> None:
    drawn = picture(row("a", 1e-6), steps=1)
    assert curves(drawn)["a"][0][0] == LEFT
    assert "Every layout against one process, <bf16>" in [text.text for text in drawn.iter(f"{SVG}text")]


def test_steps_after_a_checkpoint_follow_the_last_step() -> None:
    resume = ResumeRow("one process", "data=2", [5.0, 5.0], [1e-7, 1e-6])
    drawn = curves(picture(row("a", 1e-6, 1e-6, 1e-6), resumes=[resume]))
    assert list(drawn) == ["tolerance 1e-05", "a", "one process -> data=2"]
    (first, _), (last, _) = drawn["one process -> data=2"]
    assert drawn["a"][2][0] < first < last == RIGHT

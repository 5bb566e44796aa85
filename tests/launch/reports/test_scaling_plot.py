"""The picture of a family of runs: lines, laws and the evaluations that a law is fitted to, at their places."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from gpt.evaluation.scaling_law import GPT3_LAW, Curve, PowerLaw, fitted_points, frontier
from launch.reports.scaling_plot import HEIGHT, LEFT, RIGHT, WIDTH, draw_family

SVG = "{http://www.w3.org/2000/svg}"
LAW = PowerLaw(1.2, -0.09)


def family(n: int = 2) -> list[Curve]:
    """Runs of 20 evaluations. Each is on the law once it passes the size before, and the smallest never is."""
    curves = []
    for i in range(n):
        size, tokens = 10_000 * 4**i, np.arange(1.0, 21) * 1e6
        pf_days = 6 * size * tokens / 8.64e19
        curves.append(Curve(f"run <{i}>", size, tokens, LAW.factor * pf_days**LAW.exponent * (1.1 if i == 0 else 1)))
    return curves


def draw(curves: list[Curve], *, law: PowerLaw | None) -> ET.Element:
    used = fitted_points(frontier(curves))
    return ET.fromstring(draw_family(curves, used=used, law=law, law_text="this & that", gpt3_text="GPT-3 <law>"))


def paths(drawn: ET.Element, kind: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """The title and the points of each path of a class, without those of the legend, which have no title."""
    found = []
    for path in drawn.iter(f"{SVG}path"):
        title = path.find(f"{SVG}title")
        if path.get("class") == kind and title is not None:
            points = [(float(x), float(y)) for x, y in (p.split() for p in path.attrib["d"].strip("M").split("L"))]
            found.append((str(title.text), points))
    return found


def test_each_run_is_a_line_within_the_plot() -> None:
    """Both axes are logarithmic: a run on a power law is straight, and four times the size is a constant shift."""
    drawn = draw(family(3), law=None)
    lines = paths(drawn, "run")
    assert [title for title, _ in lines] == ["run <0>", "run <1>", "run <2>"]
    for _, points in lines:
        assert len(points) == 20
        assert all(LEFT <= x <= WIDTH - RIGHT and 0 < y < HEIGHT for x, y in points)
        (x0, y0), (x1, y1) = points[0], points[-1]
        assert all(y == pytest.approx(y0 + (x - x0) * (y1 - y0) / (x1 - x0), abs=0.2) for x, y in points)
    starts = [points[0][0] for _, points in lines]
    assert starts[1] - starts[0] == pytest.approx(starts[2] - starts[1], abs=0.11)
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert all(texts.count(size) == 2 for size in ("10.0k", "40.0k", "160k")), (
        "at the end of its line and in the legend"
    )


def test_the_law_is_drawn_through_the_evaluations_that_it_is_fitted_to() -> None:
    curves = family()
    used = fitted_points(frontier(curves))
    drawn = draw(curves, law=LAW)
    ((title, law),) = paths(drawn, "fit")
    assert title == "this & that"
    circles = [circle for circle in drawn.iter(f"{SVG}circle") if circle.get("class") == "used"]
    assert len(circles) == len(used) + 1, "and one in the legend"
    (x0, y0), (x1, y1) = law
    for circle in circles[: len(used)]:
        x, y = float(circle.attrib["cx"]), float(circle.attrib["cy"])
        assert y == pytest.approx(y0 + (x - x0) * (y1 - y0) / (x1 - x0), abs=0.2)
    assert float(circles[0].attrib["cx"]) == x0, "it starts at the first of them"
    told = circles[len(used) - 1].find(f"{SVG}title")
    assert told is not None
    assert str(told.text).startswith("run <1>: ")
    assert "after 20.0M tokens" in str(told.text)


def test_without_a_law_only_gpt3s_is_drawn() -> None:
    drawn = draw(family(), law=None)
    assert paths(drawn, "fit") == []
    assert not [circle for circle in drawn.iter(f"{SVG}circle") if circle.get("class") == "used"]
    ((title, (start, end)),) = paths(drawn, "gpt3")
    assert title == "GPT-3 <law>"
    assert start[0] == LEFT
    assert end[0] > start[0]
    assert end[1] > start[1], "the loss falls"
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert "GPT-3 <law>" in texts
    assert "this & that" not in texts
    assert GPT3_LAW.exponent < 0


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_each_size_has_a_colour_and_the_legend_is_in_the_picture(n: int) -> None:
    drawn = draw(family(n), law=LAW if n > 1 else None)
    colours = [path.get("stroke") for path in drawn.iter(f"{SVG}path") if path.get("class") == "run"]
    assert len(colours) == 2 * n, "its line, and its line in the legend"
    assert colours[:n] == colours[n:]
    assert len(set(colours)) == n
    height = float(drawn.attrib["viewBox"].split()[3])
    assert all(float(text.attrib["y"]) < height for text in drawn.iter(f"{SVG}text") if "y" in text.attrib)

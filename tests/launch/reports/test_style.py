"""One look for all reports: every page and picture uses the shared colours, and none sets its own."""

import re
from pathlib import Path

import pytest

from data_prep.reports import style as shared
from launch.reports.style import run_page, svg_document

ROOT = Path(__file__).resolve().parents[3]
COLOUR = re.compile(r"#[0-9a-fA-F]{3,8}\b")
DRAWN = ["data_prep/reports/page.py", "launch/reports/page.py", "launch/reports/plots.py", "launch/reports/tables.py",
         "launch/reports/axes.py", "launch/reports/scaling.py", "launch/parity/plot.py"]  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_no_report_sets_its_own_colours(name):
    assert COLOUR.findall((ROOT / name).read_text()) == []


def test_every_colour_has_a_light_and_a_dark_value_and_every_variable_exists():
    light, dark = shared.COLOURS.split("@media")
    names = set(re.findall(r"--[\w]+(?=:)", light))
    assert names == set(re.findall(r"--[\w]+(?=:)", dark.partition("} }")[0]))
    page = run_page("a <title>", "<h1>text</h1>") + svg_document([], width=2, height=1, label="x")
    assert set(re.findall(r"var\((--\w+)\)", page)) <= names | {"--c"}
    assert "<title>a &lt;title&gt;</title>" in page

"""The look that all report pages share: a page that loads nothing, and colours for light and dark screens."""

import re

from data_prep.reports.style import COLOURS, PAGE, html_page


def variables(css: str) -> dict[str, str]:
    """The CSS variables that a text sets."""
    return dict(re.findall(r"(--\w+):\s*([^;}]+)", css))


def test_every_colour_has_a_light_and_a_dark_value() -> None:
    light, dark = COLOURS.split("@media")
    shown, shown_dark = variables(light.partition(".s0")[0]), variables(dark.partition("} }")[0])
    assert shown.keys() == shown_dark.keys()
    assert all(shown[name].strip() != shown_dark[name].strip() for name in shown)


def test_each_series_has_a_class_and_every_variable_exists() -> None:
    names = variables(COLOURS)
    for i in range(7):
        assert f".s{i} {{ --c: var(--s{i}) }}" in COLOURS
    used = set(re.findall(r"var\((--\w+)\)", COLOURS + PAGE))
    assert used <= names.keys() | {"--c"}


def test_a_page_escapes_its_title_and_keeps_body_and_style() -> None:
    page = html_page("<script> & co", "<h1>text</h1>", style="h1 { color: red }")
    assert page.startswith("<!doctype html>")
    assert "<title>&lt;script&gt; &amp; co</title>" in page
    assert page.endswith("</style>\n<h1>text</h1>\n")
    assert "h1 { color: red }</style>" in page, "after the shared style, so that it wins"
    assert COLOURS + PAGE in page
    assert not re.search(r"<script|<link|<img|url\(|@import|https?:", page), "a page loads nothing"

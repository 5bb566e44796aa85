"""The page of several runs: served, or as one file with its data in it. Plotly draws the figures."""

import importlib.util
import json
import secrets
import time
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from data_prep.reports.style import COLOURS, PAGE
from gpt.errors import missing_extra
from launch.dashboard.feed import RunFeed
from launch.dashboard.run_data import run_data, series_data
from launch.reports.style import RUN_PAGE

FILE_POINTS = 800  # of each series in a page that is one file
# The page obeys only its own script: a text from a run cannot become one, and nothing is loaded from elsewhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; base-uri 'none'"


def served_page() -> str:
    """The page that fetches its data from the server that it came from."""
    return _page(plotly='src="plotly.js">', data=None)


def page_file(directories: Sequence[Path]) -> str:
    """A page with the data of the runs in it, of about 5 MB. ConfigError: a directory is not that of a run."""
    feeds = [RunFeed(directory) for directory in directories]
    for feed in feeds:
        feed.read_once()
    runs = [run_data(feed, now=time.time()) for feed in feeds]
    series = [
        {name: series_data(feed.series(name, most=FILE_POINTS)) for name in feed.history.metrics} for feed in feeds
    ]
    return _page(plotly=f">{plotting_script()}", data={"runs": runs, "series": series})


def plotting_script() -> str:
    """Plotly's JavaScript, which its Python package contains. ConfigError: the package is not installed."""
    found = importlib.util.find_spec("plotly")  # importing it would take a second
    if found is None or not found.submodule_search_locations:
        raise missing_extra("plotly", extra="dashboard")
    return (Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _page(*, plotly: str, data: dict[str, Any] | None) -> str:
    assets = files("launch.dashboard") / "assets"
    style, body, code = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.html", "page.js"))
    nonce = secrets.token_urlsafe(12)  # only scripts with it run
    policy = f"{POLICY}; script-src 'nonce-{nonce}'"
    text = "null" if data is None else json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width"><title>Training runs</title>',
            f"<style>{COLOURS}{PAGE}{RUN_PAGE}{style}</style></head><body>",
            body,
            f'<script type="application/json" id="data">{text}</script>',
            f'<script nonce="{nonce}" {plotly}</script>',
            f'<script nonce="{nonce}">{code}</script></body></html>\n',
        ]
    )

"""The page of several runs: served, or as one file with its data in it."""

import json
import secrets
import time
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from data_prep.reports.style import COLOURS, PAGE
from launch.dashboard.feed import RunFeed
from launch.dashboard.run_data import run_data, series_data
from launch.reports.style import PLOT, RUN_PAGE

FILE_POINTS = 800  # of each series in a page that is one file
# The page obeys only its own script: a text from a run cannot become one, and nothing is loaded from elsewhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; base-uri 'none'"


def served_page() -> str:
    """The page that fetches its data from the server that it came from."""
    return _page(data=None)


def page_file(directories: Sequence[Path]) -> str:
    """A page with the data of the runs in it. ConfigError: a directory is not that of a run."""
    feeds = [RunFeed(directory) for directory in directories]
    for feed in feeds:
        feed.read_once()
    runs = [run_data(feed, now=time.time()) for feed in feeds]
    series = [
        {name: series_data(feed.series(name, most=FILE_POINTS)) for name in feed.history.metrics} for feed in feeds
    ]
    return _page(data={"runs": runs, "series": series})


def _page(*, data: dict[str, Any] | None) -> str:
    assets = files("launch.dashboard") / "assets"
    names = ("page.css", "page.html", "chart.js", "page.js")
    style, body, chart, code = ((assets / name).read_text(encoding="utf-8") for name in names)
    nonce = secrets.token_urlsafe(12)  # only scripts with it run
    policy = f"{POLICY}; script-src 'nonce-{nonce}'"
    text = "null" if data is None else json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width"><title>Training runs</title>',
            f"<style>{COLOURS}{PAGE}{PLOT}{RUN_PAGE}{style}</style></head><body>",
            body,
            f'<script type="application/json" id="data">{text}</script>',
            f'<script nonce="{nonce}">{chart}</script>',
            f'<script nonce="{nonce}">{code}</script></body></html>\n',
        ]
    )

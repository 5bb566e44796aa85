"""Serve the page of several runs on this machine: `triaxial report --serve`."""

import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from launch.dashboard.feed import RunFeed
from launch.dashboard.page import served_page
from launch.dashboard.run_data import run_data, series_data
from launch.local_pages.server import LocalHandler, LocalServer, is_token
from launch.reports.page import report_page
from launch.runs.history import read_history

MAX_POINTS = 4000  # that a request may ask for


class Dashboard(LocalServer):
    """A server of the runs' pages. Use as a context manager; `url` is its address with the token."""

    def __init__(self, directories: Sequence[Path], *, port: int = 0) -> None:
        self.feeds = [RunFeed(directory) for directory in directories]
        self.token = secrets.token_urlsafe(18)
        self._stop = threading.Event()
        super().__init__(_Handler, port=port)
        for feed in self.feeds:
            threading.Thread(target=feed.follow, args=(self._stop,), daemon=True).start()

    @property
    def url(self) -> str:
        return self.address_of(self.token)

    def server_close(self) -> None:
        self._stop.set()
        super().server_close()


class _Handler(LocalHandler):
    timeout = 60
    server: Dashboard

    def do_GET(self) -> None:
        token, name, query = self.asked()
        if not is_token(token, self.server.token):
            self._not_found()
            return
        answers: dict[str, Callable[[dict[str, str]], None]] = {
            "": self._page,
            "runs.json": self._runs,
            "series.json": self._series,
            "report.html": self._report,
        }
        try:
            values = {key: found[-1] for key, found in parse_qs(query, keep_blank_values=True).items()}
            answers[name](values)
        except (KeyError, ValueError, IndexError):
            self._not_found()

    def _not_found(self) -> None:
        self.send(b"not found", "text/plain", HTTPStatus.NOT_FOUND)

    def _page(self, query: dict[str, str]) -> None:
        self.send(served_page().encode(), "text/html; charset=utf-8")

    def _runs(self, query: dict[str, str]) -> None:
        """All runs, or only the versions of their data, which a page asks for again and again."""
        feeds, now = self.server.feeds, time.time()
        found = [feed.version for feed in feeds] if "versions" in query else [run_data(feed, now=now) for feed in feeds]
        self._json(found)

    def _series(self, query: dict[str, str]) -> None:
        feed = self.server.feeds[_index(query["run"])]
        most = max(1, min(MAX_POINTS, int(query.get("points", "1000"))))
        first, last = (int(query[key]) if key in query else None for key in ("first", "last"))
        self._json(series_data(feed.series(query["name"], most=most, first=first, last=last)))

    def _report(self, query: dict[str, str]) -> None:
        directory = self.server.feeds[_index(query["run"])].directory
        self.send(report_page(read_history(directory), now=time.time()).encode(), "text/html; charset=utf-8")

    def _json(self, value: Any) -> None:
        self.send(json.dumps(value, allow_nan=False).encode(), "application/json")


def _index(text: str) -> int:
    """A run's number. ValueError: it is none."""
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)

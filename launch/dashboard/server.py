"""Serve the page of several runs on this machine: `triaxial report --serve`.

It listens on 127.0.0.1 only. Every address begins with a random token, as another user of the machine could connect,
and a request must name this host, as a page of a stranger could send a browser here under a name of its own.
"""

import gzip
import hmac
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from launch.dashboard.feed import RunFeed
from launch.dashboard.page import served_page
from launch.dashboard.run_data import run_data, series_data
from launch.reports.page import report_page
from launch.runs.history import read_history

MAX_POINTS = 4000  # that a request may ask for
GZIP_FROM = 2048  # bytes


class Dashboard(ThreadingHTTPServer):
    """A server of the runs' pages. Use as a context manager; `url` is its address with the token."""

    daemon_threads = True

    def __init__(self, directories: Sequence[Path], *, port: int = 0) -> None:
        self.feeds = [RunFeed(directory) for directory in directories]
        self.token = secrets.token_urlsafe(18)
        self._stop = threading.Event()
        super().__init__(("127.0.0.1", port), _Handler)
        for feed in self.feeds:
            threading.Thread(target=feed.follow, args=(self._stop,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def server_close(self) -> None:
        self._stop.set()
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection is no error; others are bugs and are printed."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a request
    server: Dashboard

    def do_GET(self) -> None:
        try:
            parts = urlsplit(self.path)
        except ValueError:  # such as http://[
            self._send(b"not found", "text/plain", HTTPStatus.NOT_FOUND)
            return
        _, token, name = [*parts.path.split("/", 2), "", ""][:3]
        if not self._is_ours() or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._send(b"not found", "text/plain", HTTPStatus.NOT_FOUND)
            return
        answers: dict[str, Callable[[dict[str, str]], None]] = {
            "": self._page,
            "runs.json": self._runs,
            "series.json": self._series,
            "report.html": self._report,
        }
        query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        try:
            answers[name](query)
        except (KeyError, ValueError, IndexError):
            self._send(b"not found", "text/plain", HTTPStatus.NOT_FOUND)

    def log_message(self, *_: Any) -> None:
        """Print nothing: the terminal shows the address and is quiet."""

    def _is_ours(self) -> bool:
        return self.headers.get("Host", "").partition(":")[0] in ("127.0.0.1", "localhost")

    def _page(self, query: dict[str, str]) -> None:
        self._send(served_page().encode(), "text/html; charset=utf-8")

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
        self._send(report_page(read_history(directory), now=time.time()).encode(), "text/html; charset=utf-8")

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value, allow_nan=False).encode(), "application/json")

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        compressed = len(body) > GZIP_FROM and "gzip" in self.headers.get("Accept-Encoding", "")
        if compressed:
            body = gzip.compress(body, 1)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if compressed:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)


def _index(text: str) -> int:
    """A run's number. ValueError: it is none."""
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)

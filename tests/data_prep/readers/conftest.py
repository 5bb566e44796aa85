"""A web server on this machine."""

import http.server
import threading
from collections import Counter

import pytest


class Site:
    """A web server: files in memory with their tags, the requests so far, and planned failures."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.failures: list[str] = []  # for the next downloads: "503", or "cut" after half of the bytes
        self.together: threading.Barrier | None = None  # questions that wait for each other

    def tag(self, path: str) -> str:
        return f'"{hash(self.files[path]):x}"'


@pytest.fixture
def site():
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if site.together is not None:
                site.together.wait()
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            site.asked[f"{self.command} {self.path}"] += 1
            body = site.files.get(self.path)
            if self.path.endswith("/"):
                body = "".join(f'<a href="{name}">x</a>' for name in site.files).encode()
            failure = site.failures.pop(0) if with_body and site.failures and self.path in site.files else ""
            if body is None or failure == "503":
                self.send_error(404 if body is None else 503)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            if self.path in site.files:
                self.send_header("ETag", site.tag(self.path))
            self.end_headers()
            if with_body:
                self.wfile.write(body[: len(body) // 2] if failure == "cut" else body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()

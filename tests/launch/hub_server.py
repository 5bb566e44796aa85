"""A web server on this machine with the Hub's addresses for data sets, as huggingface_hub asks for them.

It knows the description, the tree of files, facts about paths, and the files themselves with ranges. The names of
addresses and fields are those of the Hub's public API.
"""

import hashlib
import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The files of one data set by path, and the bytes that were sent of each."""

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        self.name, self.files = name, files
        self.sent: Counter[str] = Counter()
        self.url = ""

    def facts(self, path: str) -> dict[str, object]:
        data = self.files[path]
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def tree(self, folder: str, *, recursive: bool) -> list[dict[str, object]]:
        inside = [path for path in self.files if path.startswith(f"{folder}/" if folder else "")]
        rest = [(path, path[len(folder) + 1 if folder else 0 :]) for path in inside]
        folders = {path[: len(path) - len(tail)] + tail.split("/")[0] for path, tail in rest if "/" in tail}
        found = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]
        return [*found, *(self.facts(path) for path, tail in rest if recursive or "/" not in tail)]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        paths = [path for path in body["paths"] if path in self.hub.files]
        folders = [p for p in body["paths"] if any(name.startswith(f"{p}/") for name in self.hub.files)]
        directories = [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        self.send_json([*map(self.hub.facts, paths), *directories])

    def answer(self) -> None:
        api, resolve = f"/api/datasets/{self.hub.name}", f"/datasets/{self.hub.name}/resolve/"
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if path in (api, f"{api}/revision/main"):
            self.send_json({"id": self.hub.name, "sha": COMMIT, "private": False, "tags": [], "siblings": []})
        elif path.startswith(f"{api}/tree/"):
            folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
            self.send_json(self.hub.tree(folder, recursive="recursive=true" in parts.query.lower()))
        elif path.startswith(resolve) and path.removeprefix(resolve).partition("/")[2] in self.hub.files:
            self.send_file(path.removeprefix(resolve).partition("/")[2])
        else:
            self.send_json({"error": f"no such address: {path}"}, status=404)

    def send_file(self, name: str) -> None:
        data, status = self.hub.files[name], 200
        first, last = 0, len(data) - 1
        if wanted := self.headers.get("Range"):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last, status = int(start), min(last, int(end or last)), 206
        self.send_response(status)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.hub.sent[name] += last - first + 1
            self.wfile.write(data[first : last + 1])

    def send_json(self, value: object, *, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve the data set at `hub.url`, the value for HF_ENDPOINT."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

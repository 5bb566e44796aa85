"""Serve the page for labelling on this machine: `triaxial moderate label`.

It listens on 127.0.0.1 only. The address of each labeller begins with a random token of their own, so that another
user of the machine gets nothing and no labeller can answer in another's name. A request must name this host, and an
answer must come from the page itself: a page of a stranger could send a browser here.
"""

import gzip
import hmac
import json
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from launch.labelling.page import labelling_page
from launch.labelling.task import AlreadyAnsweredError, LabellingTask, WrongAnswerError

MAX_BODY_BYTES = 1 << 16  # an answer has a few hundred
MAX_CONNECTIONS = 64
GZIP_FROM = 2048  # bytes
WINDOW_CHARACTERS = 64

Action = Callable[[str, str, Mapping[str, Any]], dict[str, Any]]


class LabellingServer(ThreadingHTTPServer):
    """The pages of all labellers. Use as a context manager; `urls` are their addresses with the tokens."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, task: LabellingTask, labellers: Sequence[str], *, blur: bool = False, port: int = 0) -> None:
        self.task, self.blur = task, blur
        self.tokens = {name: secrets.token_urlsafe(18) for name in labellers}
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        self._connections: dict[int, socket.socket] = {}
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def urls(self) -> dict[str, str]:
        return {name: f"http://127.0.0.1:{self.server_port}/{token}/" for name, token in self.tokens.items()}

    def labeller_of(self, token: str) -> str | None:
        """The labeller whose token this is."""
        found = None
        for name, own in self.tokens.items():
            if hmac.compare_digest(token.encode(), own.encode()):
                found = name
        return found

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread; too many connections at once are closed without an answer."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._connections[id(request)] = request
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._connections[id(request)]
            self._free.release()

    def server_close(self) -> None:
        """Close the connections that browsers keep open too."""
        super().server_close()
        for request in list(self._connections.values()):
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection is no error; others are bugs and are printed."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20  # seconds without a request
    server: LabellingServer

    def do_GET(self) -> None:
        labeller, name = self._asked()
        if labeller is None or name:
            self._fault(HTTPStatus.NOT_FOUND, "not found")
            return
        page = labelling_page(self.server.task.taxonomy, labeller=labeller, blur=self.server.blur)
        self._send(page.encode(), "text/html; charset=utf-8")

    def do_POST(self) -> None:
        labeller, name = self._asked()
        task = self.server.task
        actions: dict[str, Action] = {
            "state": lambda who, window, given: task.state(who, window),
            "answer": task.answer,
            "undo": lambda who, window, given: task.undo(who, window),
            "skipped": lambda who, window, given: task.ask_skipped(who, window),
        }
        if labeller is None or name not in actions:
            self.close_connection = True  # its body is not read
            self._fault(HTTPStatus.NOT_FOUND, "not found")
            return
        given = self._body()
        if given is not None:
            self._act(actions[name], labeller, given)

    def log_message(self, *_: Any) -> None:
        """Print nothing: an address has a token in it."""

    def _asked(self) -> tuple[str | None, str]:
        """The labeller by the token of the address, and the rest of the address. None: this request is not ours."""
        _, token, name = [*self.path.partition("?")[0].split("/", 2), "", ""][:3]
        host = self.headers.get("Host", "")
        is_ours = host in (f"127.0.0.1:{self.server.server_port}", f"localhost:{self.server.server_port}")
        return self.server.labeller_of(token) if is_ours else None, name

    def _body(self) -> dict[str, Any] | None:
        """The JSON object that the page sent; else answer with the fault and return None."""
        length, kind = self.headers.get("Content-Length", ""), self.headers.get_content_type()
        origin = self.headers.get("Origin")
        fault = None
        if origin is not None and origin != f"http://{self.headers['Host']}":
            fault = HTTPStatus.FORBIDDEN, "the request comes from another page"
        elif kind != "application/json":  # a form of another page cannot send it
            fault = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json"
        elif not (length.isascii() and length.isdigit()):
            fault = HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing"
        elif len(length) > 12 or int(length) > MAX_BODY_BYTES:
            fault = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {MAX_BODY_BYTES:,} bytes"
        if fault is not None:
            self.close_connection = True
            self._fault(*fault)
            return None
        data = self.rfile.read(int(length))
        try:
            given = decode_json(data)
        except ValueError:
            given = None
        if not isinstance(given, dict) or not isinstance(given.get("window"), str):
            self._fault(HTTPStatus.BAD_REQUEST, "the body must be a JSON object with a window")
            return None
        return given

    def _act(self, action: Action, labeller: str, given: Mapping[str, Any]) -> None:
        try:
            state = action(labeller, given["window"][:WINDOW_CHARACTERS], given)
        except WrongAnswerError as error:
            self._fault(HTTPStatus.BAD_REQUEST, str(error))
        except AlreadyAnsweredError:
            self._fault(HTTPStatus.CONFLICT, "another window has answered this text meanwhile")
        except OSError as error:
            self._fault(HTTPStatus.INSUFFICIENT_STORAGE, f"the disk refuses it: {(error.strerror or '').lower()}")
        except ConfigError as error:
            self._fault(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        else:
            self._send(json.dumps(state, allow_nan=False).encode(), "application/json")

    def _fault(self, status: HTTPStatus, text: str) -> None:
        self._send(json.dumps({"problem": text}).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        compressed = len(body) > GZIP_FROM and "gzip" in self.headers.get("Accept-Encoding", "")
        body = gzip.compress(body, 1) if compressed else body
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            **({"Content-Encoding": "gzip"} if compressed else {}),
            **({"Connection": "close"} if self.close_connection else {}),
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

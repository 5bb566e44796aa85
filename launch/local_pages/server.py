"""Serve pages on this machine: a token in the address, limits of connections and time, answers that browsers keep safe.

It listens on 127.0.0.1 only. Another user of the machine could connect, so every address begins with a random token; a
page of a stranger could send a browser here under a name of its own, so a request must name this host.
"""

import gzip
import hmac
import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

MAX_CONNECTIONS = 64
GZIP_FROM = 2048  # bytes
_HOSTS = ("127.0.0.1", "localhost")


class LocalServer(ThreadingHTTPServer):
    """A thread for each connection, at most MAX_CONNECTIONS. A connection whose next request does not arrive within the
    handler's `timeout` is closed, however slowly it sends. Use as a context manager."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type["LocalHandler"], *, port: int = 0) -> None:
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        self._connections: dict[int, socket.socket] = {}
        self._deadlines: dict[int, float] = {}  # of connections that wait for a request
        super().__init__(("127.0.0.1", port), handler)

    def address_of(self, token: str) -> str:
        """The address of the page whose token this is."""
        return f"http://127.0.0.1:{self.server_port}/{token}/"

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
            self._deadlines.pop(id(request), None)
            del self._connections[id(request)]
            self._free.release()

    def wait_for_request(self, connection: Any, seconds: float) -> None:
        """Close the connection unless `has_arrived` is called in time."""
        self._deadlines[id(connection)] = time.monotonic() + seconds

    def has_arrived(self, connection: Any) -> None:
        """The request of a connection is read, with its body."""
        self._deadlines.pop(id(connection), None)

    def service_actions(self) -> None:
        """Close the connections whose request is late; called about twice a second."""
        super().service_actions()
        now = time.monotonic()
        self._close(number for number, deadline in list(self._deadlines.items()) if deadline < now)

    def server_close(self) -> None:
        """Close the connections that browsers keep open too."""
        super().server_close()
        self._close(list(self._connections))

    def _close(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            connection = self._connections.get(number)
            if connection is not None:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection is no error; others are bugs and are printed."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class LocalHandler(BaseHTTPRequestHandler):
    """The requests of one connection. A subclass has `do_GET` and perhaps `do_POST`, which calls `read_body` once."""

    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float] = 20  # seconds until a request has arrived
    server: LocalServer

    def handle_one_request(self) -> None:
        self.server.wait_for_request(self.connection, self.timeout)
        super().handle_one_request()

    def parse_request(self) -> bool:
        is_whole = super().parse_request()
        if not is_whole or self.command != "POST":
            self.server.has_arrived(self.connection)
        return is_whole

    def read_body(self, n_bytes: int) -> bytes:
        data = self.rfile.read(n_bytes)
        self.server.has_arrived(self.connection)
        return data

    def log_message(self, *_: Any) -> None:
        """Print nothing: an address has a token in it."""

    def asked(self) -> tuple[str, str, str]:
        """The token of the address, what follows it, and the query. The token is "" if another host is named."""
        path, _, query = self.path.partition("?")
        _, token, name = [*path.split("/", 2), "", ""][:3]
        is_ours = self.headers.get("Host", "").partition(":")[0] in _HOSTS
        return token if is_ours else "", name, query

    def send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Send an answer, packed if the browser takes that."""
        self.server.has_arrived(self.connection)  # whatever of it was not read
        is_packed = len(body) > GZIP_FROM and "gzip" in self.headers.get("Accept-Encoding", "")
        body = gzip.compress(body, 1) if is_packed else body
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            **({"Content-Encoding": "gzip"} if is_packed else {}),
            **({"Connection": "close"} if self.close_connection else {}),
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def is_token(given: str, own: str) -> bool:
    """Whether a token is the right one, in a time that says nothing about it."""
    return hmac.compare_digest(given.encode(), own.encode())

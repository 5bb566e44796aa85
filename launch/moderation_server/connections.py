"""Limit the connections of the moderation server, and close those whose first request does not arrive in time."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from aiohttp import web

_MESSAGE = "too many connections are open. Close some, or try again later"
_BODY = json.dumps({"error": {"message": _MESSAGE, "type": "server_error", "code": "too_many_connections"}}).encode()
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


@dataclass
class Connections:
    """The open connections, at most `most`. One without the header of a request after `timeout_s` is closed.

    Only a connection's first header has this limit: aiohttp closes one that waits too long for a later request.
    """

    most: int
    timeout_s: float
    open: int = 0
    refused: int = 0
    _waiting: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = field(default_factory=dict)

    def watched(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        """A factory of protocols for `loop.create_server`."""
        return lambda: _Watched(self, cast(asyncio.Protocol, server()))

    def has_request(self, protocol: asyncio.BaseProtocol) -> None:
        """The header of a request has arrived: aiohttp's `request.protocol`."""
        if timer := self._waiting.pop(protocol, None):
            timer.cancel()

    def wait(self, protocol: asyncio.BaseProtocol, transport: asyncio.Transport) -> None:
        """Close the connection unless `has_request` is called in time."""
        self._waiting[protocol] = asyncio.get_running_loop().call_later(self.timeout_s, transport.abort)


class _Watched(asyncio.Protocol):
    """Pass everything on to aiohttp, except connections beyond the limit."""

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self.connections, self.inner = connections, inner
        self.is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        given = cast(asyncio.Transport, transport)
        if self.connections.open >= self.connections.most:
            self.is_refused = True
            self.connections.refused += 1
            given.write(_REFUSAL)
            given.close()
            return
        self.connections.open += 1
        self.connections.wait(self.inner, given)
        self.inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_refused:
            self.connections.open -= 1
            self.connections.has_request(self.inner)
            self.inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.is_refused:
            self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self.is_refused else self.inner.eof_received()

    def pause_writing(self) -> None:
        if not self.is_refused:
            self.inner.pause_writing()

    def resume_writing(self) -> None:
        if not self.is_refused:
            self.inner.resume_writing()

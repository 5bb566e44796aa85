"""The HTTP server of a moderation model: two APIs, a health check, clear refusals, and no text in any log."""

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from launch.moderation_server.batches import BatchQueue, ModelFault, TextScorer
from launch.moderation_server.connections import Connections
from launch.moderation_server.forms import (
    analyze_answer,
    analyze_request,
    decode_request,
    moderation_answer,
    moderation_request,
)
from launch.moderation_server.limits import Refused, ServerLimits

log = logging.getLogger(__name__)
MODERATIONS, ANALYZE, HEALTH = "/v1/moderations", "/v1alpha1/comments:analyze", "/health"
_STATUS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}  # of Google
_DRAINING = "the server is stopping. Ask another one"
_NO_LOG = logging.Logger("aiohttp, whose messages quote requests", logging.CRITICAL + 1)


@dataclass
class ModerationService:
    """State of the handlers. `draining`: set when the server stops; it then only answers accepted requests."""

    scorer: TextScorer
    queue: BatchQueue
    limits: ServerLimits
    names: Mapping[str, str]
    key: str | None = None
    logs_requests: bool = False
    draining: bool = False
    open_requests: int = 0
    answered: int = 0
    refused: int = 0
    started_at: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.connections = Connections(self.limits.max_connections, self.limits.read_timeout_s)

    def application(self) -> web.Application:
        """The routes, each behind the checks of `_guard`."""
        app = web.Application(middlewares=[self._guard], client_max_size=self.limits.max_body_bytes)
        app.router.add_post(MODERATIONS, self._moderations)
        app.router.add_post(ANALYZE, self._analyze)
        app.router.add_get(HEALTH, self._health)
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        started = time.perf_counter()
        self.connections.has_request(request.protocol)
        self.open_requests += 1
        try:
            response = await self._answer(request, handler)
        finally:
            self.open_requests -= 1
        if self.logs_requests:
            elapsed_ms = (time.perf_counter() - started) * 1e3
            path = request.path if request.path in (MODERATIONS, ANALYZE, HEALTH) else "other"
            log.info("%s %s %d %.1f ms", request.method, path, response.status, elapsed_ms)
        return response

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            if request.path != HEALTH:
                self._check(request)
            response = await handler(request)
            self.answered += request.path != HEALTH
            return response
        except Refused as refused:
            return self._refusal(request, refused)
        except web.HTTPRequestEntityTooLarge:
            message = f"the request is larger than {self.limits.max_body_bytes} bytes. Send several requests"
            return self._refusal(request, Refused(413, "request_too_large", message))
        except web.HTTPMethodNotAllowed as error:
            allowed = " or ".join(sorted(error.allowed_methods))
            return self._refusal(request, Refused(405, "wrong_method", f"this address takes {allowed} only"))
        except web.HTTPNotFound:
            message = f"there is no such address. Use {MODERATIONS} or {ANALYZE}"
            return self._refusal(request, Refused(404, "not_found", message))
        except (ConnectionError, asyncio.CancelledError):
            raise  # the client has left
        except Exception as error:  # the message of any other may quote a text, so only its type is logged
            log.error("fault: %s", error if isinstance(error, ModelFault) else type(error).__name__)
            return self._refusal(request, Refused(500, "server_fault", "the server failed on this request"))

    def _check(self, request: web.Request) -> None:
        """Refuse before the body is read, if there is a reason."""
        if self.draining:
            raise Refused(503, "stopping", _DRAINING, retry_after_s=1)
        if self.key is not None and not hmac.compare_digest(
            _given_key(request).encode("utf-8", "surrogateescape"), self.key.encode()
        ):
            raise Refused(401, "wrong_key", "the key is missing or wrong. Send Authorization: Bearer KEY, or ?key=KEY")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(415, "encoded_body", "Content-Encoding must be absent: send the JSON as it is")
        if (request.content_length or 0) > self.limits.max_body_bytes:
            raise web.HTTPRequestEntityTooLarge(self.limits.max_body_bytes, request.content_length or 0)
        if self.open_requests > self.limits.max_requests:
            message = f"{self.limits.max_requests} requests are open, which is the limit. Try again later"
            raise Refused(429, "too_many_requests", message, retry_after_s=self.queue.wait_s())

    async def _body(self, request: web.Request) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self.limits.read_timeout_s):
                return decode_request(await request.read())
        except TimeoutError:
            message = f"the request did not arrive within {self.limits.read_timeout_s} s"
            raise Refused(408, "too_slow", message) from None

    async def _moderations(self, request: web.Request) -> web.Response:
        wanted = moderation_request(await self._body(request), self.limits)
        scores = await self.queue.scores(wanted.texts)
        return self._json(
            moderation_answer(wanted, scores, self.scorer, self.names, id=f"modr-{secrets.token_hex(12)}")
        )

    async def _analyze(self, request: web.Request) -> web.Response:
        wanted = analyze_request(await self._body(request), self.names, self.limits)
        scores = await self.queue.scores([wanted.text])
        return self._json(analyze_answer(wanted, scores, self.scorer, self.names))

    async def _health(self, request: web.Request) -> web.Response:
        """200 while the server takes requests, 503 while it stops."""
        facts = {
            "status": "stopping" if self.draining else "ok",
            "model": self.scorer.version,
            "categories": list(self.scorer.categories),
            "uptime_s": round(time.time() - self.started_at, 1),
            "waiting_texts": self.queue.waiting,
            "answered": self.answered,
            "refused": self.refused,
        }
        return self._json(facts, status=503 if self.draining else 200)

    def _refusal(self, request: web.Request, refused: Refused) -> web.Response:
        """The error in the form of the API that was called. The rest of the request is not read."""
        self.refused += 1
        if request.path == ANALYZE:
            word = _STATUS.get(refused.status, "UNAVAILABLE" if refused.status >= 500 else "FAILED_PRECONDITION")
            error: dict[str, Any] = {"code": refused.status, "message": refused.message, "status": word}
            error["details"] = [{"reason": refused.code, "field": refused.param}]
        else:
            kind = "server_error" if refused.status >= 500 else "invalid_request_error"
            error = {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}
        response = self._json({"error": error, "model": self.scorer.version}, status=refused.status)
        if refused.retry_after_s is not None:
            response.headers["Retry-After"] = str(refused.retry_after_s)
        if request.can_read_body and not request.content.is_eof():
            response.force_close()
        return response

    def _json(self, value: Mapping[str, Any], *, status: int = 200) -> web.Response:
        headers = {"X-Model-Version": self.scorer.version, "Cache-Control": "no-store"}
        if self.draining:
            headers["Connection"] = "close"
        body = json.dumps(value, allow_nan=False).encode()
        return web.Response(body=body, status=status, headers=headers, content_type="application/json")


async def serve(
    scorer: TextScorer,
    *,
    host: str,
    port: int,
    limits: ServerLimits,
    names: Mapping[str, str],
    stop: asyncio.Event,
    ready: Callable[[int], None],
    key: str | None = None,
    logs_requests: bool = False,
) -> ModerationService:
    """Serve until `stop` is set, then answer every request that has been accepted. `ready` gets the port."""
    async with BatchQueue(scorer, limits) as queue:
        service = ModerationService(scorer, queue, limits, names, key, logs_requests)
        runner = web.AppRunner(
            service.application(),
            access_log=None,
            logger=_NO_LOG,
            handler_cancellation=True,  # nobody waits for the scores of a client that has left
            auto_decompress=False,  # a small request must not become a large one
            keepalive_timeout=75,
            shutdown_timeout=3600,  # of a request that is being answered; the queue is finite
        )
        await runner.setup()
        assert runner.server is not None
        listening = service.connections.watched(runner.server)
        try:
            server = await asyncio.get_running_loop().create_server(listening, host, port, backlog=1024)
            ready(server.sockets[0].getsockname()[1])
            await stop.wait()
            service.draining = True
            server.close()
        finally:
            await runner.cleanup()
    return service


def _given_key(request: web.Request) -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else request.query.get("key", "")

"""Run the moderation server as a process: its address on standard output, its log on standard error, its signals."""

import asyncio
import logging
import resource
import signal
import sys
from collections.abc import Mapping

from gpt.errors import ConfigError
from launch.moderation_server.app import ANALYZE, HEALTH, MODERATIONS, log, serve
from launch.moderation_server.batches import TextScorer
from launch.moderation_server.limits import ServerLimits

_OTHER_FILES = 256  # that a process opens besides its connections


def run_server(
    scorer: TextScorer,
    *,
    host: str,
    port: int,
    limits: ServerLimits,
    names: Mapping[str, str],
    key: str | None = None,
    logs_requests: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests that have been accepted. A second Ctrl-C ends it at once.

    ConfigError: the address cannot be used.
    """
    _log_to_stderr()
    _allow_files(limits.max_connections + _OTHER_FILES)

    def ready(used: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        print(f"moderation model {scorer.version} at http://{shown}:{used}", flush=True)
        print(f"POST {MODERATIONS}, POST {ANALYZE}, GET {HEALTH}; stop with Ctrl-C", flush=True)

    async def until_stopped() -> tuple[int, int]:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: loop.call_soon_threadsafe(_stop, stop, received))
        try:
            service = await serve(
                scorer,
                host=host,
                port=port,
                limits=limits,
                names=names,
                stop=stop,
                ready=ready,
                key=key,
                logs_requests=logs_requests,
            )
        except OSError as error:
            raise ConfigError(f"--host {host} --port {port} cannot be used: {error.strerror}") from None
        return service.answered, service.refused

    try:
        answered, refused = asyncio.run(until_stopped())
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process ends by its own status, however often it is asked
        signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"stopped: {answered:,} requests answered, {refused:,} refused", flush=True)


def _stop(stop: asyncio.Event, number: int) -> None:
    if stop.is_set() and number == signal.SIGTERM:
        return  # a supervisor may send it to the process and again to its group
    if stop.is_set():
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    print("stopping: answering the requests that have been accepted", flush=True)
    stop.set()


def _allow_files(wanted: int) -> None:
    """Let this process open `wanted` files and connections, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _log_to_stderr() -> None:
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False

"""Run the calls of a client library in a thread: a client that hangs delays its caller for a limited time only."""

import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


class ClientThread:
    """Run calls one after another. An error of a call is raised at the next `post` or `call`.

    TimeoutError: a call has not returned for `patience_s` seconds; the thread is then unusable.
    """

    def __init__(self, *, patience_s: float) -> None:
        self.patience_s = patience_s
        self._waiting: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        self._began: float | None = None  # when the call that runs now began
        self._error: Exception | None = None
        threading.Thread(target=self._work, daemon=True).start()

    def post(self, action: Callable[[], Any]) -> None:
        """Queue the action and return at once."""
        self._check()
        self._waiting.put((action, queue.SimpleQueue()))

    def call(self, action: Callable[[], Any], *, limit_s: float) -> Any:
        """Run the action after the queued ones and return its result; TimeoutError after `limit_s` seconds."""
        self._check()
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting.put((action, answer))
        try:
            result = answer.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError(f"no answer within {limit_s:g} s") from None
        self._check()
        return result

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        began = self._began
        if began is not None and time.monotonic() - began > self.patience_s:
            raise TimeoutError(f"no answer within {self.patience_s:g} s")

    def _work(self) -> None:
        while True:
            action, answer = self._waiting.get()
            self._began, result = time.monotonic(), None
            if self._error is None:
                try:
                    result = action()
                except Exception as error:  # a client can raise any error
                    self._error = error
            self._began = None
            answer.put(result)


def end_children(name: str) -> list[str]:
    """Kill the children of this process whose name begins so, and describe them. Does nothing except on Linux.

    Use it for a helper that does not answer: a client waits for it when Python ends.
    """
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            before, _, after = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")
            command, (state, parent, *_) = before.partition("(")[2], after.split()
            if int(parent) == os.getpid() and command.startswith(name):
                pid = int(stat.parent.name)
                os.kill(pid, signal.SIGKILL)
                found.append(f"process {pid} ({command}, {'stopped' if state in 'Tt' else 'running'})")
    return found

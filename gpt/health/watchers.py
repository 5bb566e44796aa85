"""The interface between the training loop and its watchers: heartbeat, step watch, and signals that stop it.

The watchers themselves are in parallel/health.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

from gpt.telemetry.event_log import EventKind


class Heartbeat(Protocol):
    """A watcher of this process. A beat costs a microsecond and waits for nothing."""

    def beat(self, phase: str, step: int) -> None:
        """Note that a phase begins ("data", "training", "evaluation", "saving", ...), or the next batch within it.

        `step` is the step that it belongs to, counted from 1 as in the metrics.
        """
        ...


class Unwatched:
    """A heartbeat that nobody watches."""

    def beat(self, phase: str, step: int) -> None:
        pass


UNWATCHED = Unwatched()


class Finding(NamedTuple):
    """An event to record: its kind, a sentence, and further fields for JSON."""

    kind: EventKind
    text: str
    fields: dict[str, Any]


class StepWatch(Protocol):
    """A watcher of the speed of steps. Every rank has one, and all ranks make the same calls."""

    def step(self, step: int) -> AbstractContextManager[None]:
        """Enter this around each step, counted from 1."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Enter this within a step, around the reading of its data."""
        ...

    def compare(self) -> tuple[dict[str, float | int], Sequence[Finding]]:
        """Return the metrics of the last step, if it was measured, and findings. All ranks must call it after each
        step; it may communicate."""
        ...


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Note SIGTERM and SIGUSR1 instead of dying from them, while inside. Yield a function that says whether one came.

    Outside of the main thread, Python cannot handle signals, and the function stays False.
    """
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return
    before = {number: signal.signal(number, lambda *_: noted.set()) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield noted.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

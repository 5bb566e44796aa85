"""How the training loop says that it lives: a word at each phase of each step; decides nothing by it."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

from gpt.telemetry.event_log import EventKind


class Heartbeat(Protocol):
    """Whoever watches this process. A beat costs a microsecond and waits for nobody."""

    def beat(self, phase: str, step: int) -> None:
        """Here begins a phase ("data", "training", "evaluation", "saving", ...), or its next batch.

        `step` is the number of the step that it belongs to, from 1 as in the metrics.
        """
        ...


class Unwatched:
    """Nobody watches."""

    def beat(self, phase: str, step: int) -> None:
        pass


UNWATCHED = Unwatched()


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM and SIGUSR1 are noted instead of killing; yields a function that says whether one came."""
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


class Finding(NamedTuple):
    """What is worth an event: its kind, a sentence, and further fields, ready for JSON."""

    kind: EventKind
    text: str
    fields: dict[str, Any]


class StepWatch(Protocol):
    """One on every rank, of which all are called alike."""

    def step(self, step: int) -> AbstractContextManager[None]:
        """To be entered around the whole of a step, counted from 1."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """To be entered, within a step, around what reads its data."""
        ...

    def compare(self) -> tuple[dict[str, float | int], Sequence[Finding]]:
        """After a step, on all ranks: its metrics, if it was measured, and what they show. May communicate."""
        ...

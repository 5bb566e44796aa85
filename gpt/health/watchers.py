"""The interface between the training loop and its watchers: heartbeat, step watch, and the request to stop.

The watchers themselves are in parallel/health.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
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


class StopRequest(Protocol):
    """Whether someone wants the run to save and stop. launch/processes makes one from the signals to a rank."""

    def __call__(self) -> bool:
        """Return whether to save and stop after this step. It need not agree between ranks."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether a person asked for it, by Ctrl-C, so that the run is not to be started again."""
        ...

    def step_done(self) -> None:
        """Note that a step is done: from the first one on, there is something to save."""
        ...


class NeverStop:
    """Never ask to stop: the run continues to its end."""

    interrupted = False

    def __call__(self) -> bool:
        return False

    def step_done(self) -> None:
        pass


NEVER_STOP = NeverStop()

"""What the training loop asks of something that watches how long ranks need for their steps; measures nothing."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from gpt.telemetry.event_log import EventKind


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

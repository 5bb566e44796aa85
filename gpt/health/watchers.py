"""How the training loop says that it lives: a word at each phase of each step; decides nothing by it."""

from typing import Protocol


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

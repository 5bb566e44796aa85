"""Time many short computations in alternating rounds, such that a slow moment of the machine disturbs all of them."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

MIN_SPAN_S = 1e-3  # a shorter computation is repeated until it takes this long
MAX_REPEATS = 50


@dataclass(frozen=True)
class TimedCase:
    """One or more computations, timed one after the other; `row(*seconds)` makes a table's row of their medians.

    `repeats`: calls of each measurement. None chooses them by time, which ranks that work together must not do.
    """

    parts: tuple[Callable[[], object], ...]
    row: Callable[..., Any]
    repeats: int | None = None


@dataclass
class Stopwatch:
    """Time computations on a device.

    `processor`: count the time in which this thread had its core, not the time on the wall. It is right for
    computations of one thread that wait for nobody, also while other programs use the machine.
    """

    device: torch.device
    processor: bool
    wall_s: float = 0.0
    processor_s: float = 0.0
    spreads: list[float] = field(default_factory=list)

    def seconds(self, function: Callable[[], object], repeats: int = 1) -> float:
        """Seconds of one call, as the mean of `repeats` calls."""
        self._wait()
        wall, own = time.perf_counter(), time.thread_time()
        for _ in range(repeats):
            function()
        self._wait()
        wall, own = time.perf_counter() - wall, time.thread_time() - own
        self.wall_s += wall
        self.processor_s += own
        return (own if self.processor else wall) / repeats

    @property
    def waiting(self) -> float:
        """The share of the time so far in which this thread did not have its core; 0 if that says nothing."""
        return max(0.0, 1 - self.processor_s / self.wall_s) if self.processor and self.wall_s else 0.0

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median(self, spans: Sequence[float]) -> float:
        """The median, whose spread is kept."""
        middle = statistics.median(spans)
        if len(spans) > 2 and middle > 0:
            low, _, high = statistics.quantiles(spans, n=4)
            self.spreads.append((high - low) / middle)
        return middle


def time_cases(cases: Sequence[TimedCase], watch: Stopwatch, *, rounds: int) -> list[Any]:
    """Run all cases in turn, `rounds` times, and return their rows. A first run of each is not counted."""
    repeats = []
    for case in cases:
        for part in case.parts:
            part()
        first = [watch.seconds(part) for part in case.parts]
        by_time = [max(1, min(MAX_REPEATS, round(MIN_SPAN_S / max(span, 1e-9)))) for span in first]
        repeats.append(by_time if case.repeats is None else [case.repeats] * len(first))
    spans: list[list[list[float]]] = [[[] for _ in case.parts] for case in cases]
    for _ in range(rounds):
        for case, counts, found in zip(cases, repeats, spans, strict=True):
            for part, count, times in zip(case.parts, counts, found, strict=True):
                times.append(watch.seconds(part, count))
    return [case.row(*(watch.median(times) for times in found)) for case, found in zip(cases, spans, strict=True)]

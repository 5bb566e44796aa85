"""The sections of a profile, as one rank measures them: kernels and single-process steps, then messages and layouts."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from parallel.agreement import wait_for_all
from parallel.planner.measuring.collectives import collective_cases
from parallel.planner.measuring.engine_steps import alone_tasks, group_tasks, measure_samples
from parallel.planner.measuring.kernels import attention_cases, elementwise_cases, product_cases
from parallel.planner.measuring.rounds import Stopwatch, TimedCase, time_cases

ROUNDS = {
    "products": 3,
    "attention": 5,
    "elementwise": 5,
    "collectives": 9,
    "samples": 3,
}  # samples in each of two turns

Meet = Callable[[], None]  # returns when all ranks are there
Report = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """A rank's rows by section, the spreads of all measurements, and the share of time without a core."""

    rows: dict[str, list[Any]]
    spreads: list[float]
    waiting: float


def measure_alone(
    device: torch.device, precisions: Iterable[str], *, kernels: bool, processor: bool, meet: Meet, report: Report
) -> Measured:
    """Kernels and steps of one process, on a process group of this rank alone. Other ranks measure the same at once.

    Without `kernels`, only the steps. `processor`: see Stopwatch.
    """
    watch, rows = Stopwatch(device, processor), dict[str, list[Any]]()
    for precision in precisions:
        tables: dict[str, Iterable[TimedCase]] = {
            "products": product_cases(device, precision),
            "attention": attention_cases(device, precision),
            "elementwise": elementwise_cases(device, precision),
        }
        for name, cases in tables.items() if kernels else ():
            meet()
            started_at = time.perf_counter()
            found = time_cases(list(cases), watch, rounds=ROUNDS[name])
            rows.setdefault(name, []).extend(found)
            report(f"{name} in {precision}: {len(found)} in {time.perf_counter() - started_at:.1f} s")
        meet()
        rows.setdefault("samples", []).extend(_steps(alone_tasks(device, precision), watch, precision, report))
    return Measured(rows, watch.spreads, watch.waiting)


def measure_group(
    device: torch.device, precisions: Iterable[str], *, ranks: int, messages: bool, report: Report
) -> Measured:
    """Messages among all ranks of the process group, and steps of its layouts. Collective.

    Without `messages`, only the steps.
    """
    watch, rows = Stopwatch(device, processor=False), dict[str, list[Any]]()
    if messages:
        started_at = time.perf_counter()
        sizes = [size for size in range(2, ranks + 1) if ranks % size == 0]
        cases = [case for size in sizes for case in collective_cases(device, size)]
        rows["collectives"] = time_cases(cases, watch, rounds=ROUNDS["collectives"])
        report(f"messages: {len(rows['collectives'])} in {time.perf_counter() - started_at:.1f} s")
    for precision in precisions:
        wait_for_all()
        tasks = group_tasks(device, precision, ranks)
        rows.setdefault("samples", []).extend(_steps(tasks, watch, precision, report))
    return Measured(rows, watch.spreads, 0.0)


def _steps(tasks: list[Any], watch: Stopwatch, precision: str, report: Report) -> list[Any]:
    started_at = time.perf_counter()
    found = list(measure_samples(tasks, watch.device, watch, rounds=ROUNDS["samples"]))
    report(f"steps in {precision}: {len(found)} in {time.perf_counter() - started_at:.1f} s")
    return found

"""Adds up RUN/ledger.jsonl over all processes of a run, restarts and all: what trained, what was lost; writes nothing.

The parts add up to the wall time, from the start of the first process to the last row: what lies between two processes
is time too. Goodput is the training that counted as a share of it.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gpt.telemetry.time_ledger import PHASES, TimeLedger

TRAINING, REPEATED, DOWN = "training", "repeated", "down"
# In this order everywhere, with what a reader who is no programmer calls them. "start_up" stands for its parts.
NAMES = {
    TRAINING: "training that counted",
    REPEATED: "training lost to repeated steps",
    "evaluation": "evaluation",
    "sampling": "sampling",
    "saving": "saving (standing still)",
    "waiting_for_save": "waiting for a save",
    "data": "waiting for data",
    "start_up": "starting up",
    "rewinding": "rewinding",
    "shutdown": "shutting down",
    "other": "other",
    DOWN: "down between processes",
}


@dataclass(frozen=True)
class ProcessTime:
    """One process of the main rank. Its steps past `counted_to` were taken again later."""

    process: str
    host: str
    restart_count: int
    world_size: int
    from_step: int | None  # None: it ended before it knew
    step: int
    started_time: float  # wall clock, from its last row and its age
    down_s: float  # before it
    elapsed_s: float
    seconds: dict[str, float]
    first_step_s: float | None  # from the end of the start-up to the end of the first step; None if it made none

    @property
    def ended_time(self) -> float:
        """Of its last row; later if it goes on."""
        return self.started_time + self.elapsed_s

    @property
    def start_up(self) -> dict[str, float]:
        """The parts of the start-up, without "start_up/"."""
        return {phase.removeprefix("start_up/"): s for phase, s in self.seconds.items() if phase.startswith("start_up")}


@dataclass(frozen=True)
class Account:
    """Where the time of a whole run went. `seconds` has a part for each phase, and REPEATED and DOWN."""

    seconds: dict[str, float]
    repeated_steps: int
    step: int
    tokens: int
    processes: list[ProcessTime]

    @property
    def wall_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        return self.seconds[TRAINING] / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def by_name(self) -> dict[str, float]:
        """Seconds by the keys of NAMES; the parts of the start-up are one."""
        sums = dict.fromkeys(NAMES, 0.0)
        for phase, s in self.seconds.items():
            sums[phase.partition("/")[0]] += s
        return sums

    def values(self) -> dict[str, float]:
        """For the metrics: `goodput` and a `time/...` in seconds for each part that took any."""
        return {"goodput": self.goodput} | {f"time/{name}_s": s for name, s in self.by_name.items() if s > 0}


Row = dict[str, Any]


def current_account(ledger: TimeLedger) -> Account | None:
    """The account of the whole run up to now; None on all ranks but the main one."""
    ledger.write()
    return None if ledger.path is None else read_account(ledger.path)


def read_account(path: Path) -> Account | None:
    """The account of a ledger.jsonl; None where there is none or no whole row in it."""
    rows = list(read_rows(path))
    return account(rows) if rows else None


def read_rows(path: Path) -> Iterator[Row]:
    """The whole rows of a ledger, in order. What a killed process left half written is passed over."""
    try:
        with path.open("rb") as lines:
            for line in lines:
                row = _row(line)
                if row is not None:
                    yield row
    except FileNotFoundError:
        return


def account(rows: Sequence[Row]) -> Account:
    """Add up the rows of a ledger, at least one."""
    by_process: dict[str, list[Row]] = {}
    for row in rows:
        by_process.setdefault(row["process"], []).append(row)
    processes, last = [], None
    for own in by_process.values():
        processes.append(_process_time(own, down_s=0.0 if last is None else _between(last, own[0])))
        last = own[-1]
    seconds: dict[str, float] = {}
    for process in processes:
        for phase, s in process.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + s
    repeated_s, repeated_steps = _repeated(by_process.values())
    seconds[TRAINING] = seconds.get(TRAINING, 0.0) - repeated_s
    seconds[REPEATED] = repeated_s
    seconds[DOWN] = sum(process.down_s for process in processes)
    place = next((row for row in reversed(rows) if row["from_step"] is not None), rows[-1])
    return Account(seconds, repeated_steps, place["step"], place["tokens"], processes)


def summary_lines(found: Account) -> list[str]:
    """What `triaxial train` says at its end: goodput, and the parts of the time with the largest first."""
    parts = sorted(((s, name) for name, s in found.by_name.items() if s > 0), reverse=True)
    told = ", ".join(f"{NAMES[name]} {s / found.wall_s:.1%}" for s, name in parts if s / found.wall_s >= 0.0005)
    n = len(found.processes)
    lines = [f"time: {found.wall_s:,.1f} s in {n} process{'es' if n > 1 else ''}, goodput {found.goodput:.1%}"]
    if told:
        lines.append(f"time: {told}")
    if found.repeated_steps:
        lines.append(f"time: {found.repeated_steps:,} steps were lost and taken again")
    return lines


def _process_time(rows: Sequence[Row], *, down_s: float) -> ProcessTime:
    last = rows[-1]
    return ProcessTime(
        process=last["process"],
        host=last["host"],
        restart_count=last["restart_count"],
        world_size=last["world_size"],
        from_step=next((row["from_step"] for row in rows if row["from_step"] is not None), None),
        step=last["step"],
        started_time=last["time"] - last["elapsed_s"],
        down_s=down_s,
        elapsed_s=last["elapsed_s"],
        # rounding and a row of an older format may leave a rest: the phases always add up to the age
        seconds=_with_rest(last["seconds"], last["elapsed_s"]),
        first_step_s=_first_step_s(rows),
    )


def _with_rest(seconds: dict[str, float], elapsed_s: float) -> dict[str, float]:
    rest = elapsed_s - sum(seconds.values())
    return {**seconds, "other": seconds.get("other", 0.0) + rest}


def _first_step_s(rows: Sequence[Row]) -> float | None:
    """From the first row that has a step: all that is no part of the start-up."""
    for row in rows:
        if row["from_step"] is not None and row["step"] == row["from_step"] + 1:
            before_s = sum(float(s) for phase, s in row["seconds"].items() if phase.startswith("start_up"))
            return float(row["elapsed_s"]) - before_s
    return None


def _between(before: Row, after: Row) -> float:
    """Seconds from a process's last row to the next one's start, never less than 0. On one machine that was not started
    anew by its monotonic clock, else by the wall clocks, which may have been set."""
    clock = "monotonic_s" if before["boot"] and before["boot"] == after["boot"] else "time"
    return max(0.0, float(after[clock] - after["elapsed_s"] - before[clock]))


def _repeated(processes: Iterable[Sequence[Row]]) -> tuple[float, int]:
    """Seconds of training, and steps, that a later process or a rewind began before: lost, and done again."""
    begun = [[row for row in rows if row["from_step"] is not None] for rows in processes]
    takes = [list(take) for rows in begun for _, take in groupby(rows, key=lambda row: row["take"])]
    lost_s, lost_steps, limit = 0.0, 0, float("inf")
    for take in reversed(takes):
        points = _training_by_step(take)
        last_step, last_s = points[-1]
        if limit < last_step:
            kept = max(limit, points[0][0])
            lost_s += last_s - _interpolated(points, kept)
            lost_steps += int(last_step - kept)
        limit = min(limit, points[0][0])
    return lost_s, lost_steps


def _training_by_step(take: Sequence[Row]) -> list[tuple[int, float]]:
    """(step, seconds of training up to it), from where the take began."""
    first = take[0]
    points = [(int(first["from_step"]), float(first["seconds"].get(TRAINING, 0.0)))]
    for row in take:
        points.append((max(int(row["step"]), points[-1][0]), float(row["seconds"].get(TRAINING, 0.0))))
    return points


def _interpolated(points: Sequence[tuple[int, float]], step: float) -> float:
    """Seconds at a step between two rows, in proportion."""
    before = points[0]
    for point in points:
        if point[0] > step:
            return before[1] + (point[1] - before[1]) * (step - before[0]) / (point[0] - before[0])
        before = point
    return before[1]


def _row(line: bytes) -> Row | None:
    """A row whose fields have the types that this module counts on, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        seconds: dict[str, float] = {}
        for phase, s in row["seconds"].items():
            known = phase if phase.partition("/")[0] in PHASES else "other"
            seconds[known] = seconds.get(known, 0.0) + float(s)
        whole = {key: int(row[key]) for key in ("restart_count", "world_size", "take", "step", "tokens")}
        from_step = None if row["from_step"] is None else int(row["from_step"])
        real = {key: float(row[key]) for key in ("time", "monotonic_s", "elapsed_s")}
        words = {key: str(row[key]) for key in ("process", "host", "boot")}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    if not all(math.isfinite(number) for number in (*real.values(), *seconds.values())):
        return None
    return {**words, **whole, **real, "from_step": from_step, "seconds": seconds}

"""Add up RUN/ledger.jsonl over all processes of a run, including restarts: time that trained, and time that was lost.

The parts add up to the wall time from the start of the first process to the last row, including the time between
processes. Goodput is the share of the time of steps that was not repeated later. A step of PPO has rollouts and scores.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular
from gpt.telemetry.time_ledger import PHASES, TimeLedger

TRAINING, REPEATED, DOWN = "training", "repeated", "down"
OF_STEPS = (TRAINING, "rollouts", "scoring")  # the phases of a step
# The parts in display order, with readable names. "start_up" is the sum of its parts.
NAMES = {
    TRAINING: "training that counted",
    "rollouts": "rollouts that counted",
    "scoring": "scores of rollouts that counted",
    REPEATED: "lost to repeated steps",
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
    """The time of one process of the main rank."""

    process: str
    host: str
    restart_count: int
    world_size: int
    from_step: int | None  # None: it ended before it knew the step
    step: int
    started_time: float  # wall clock: time of its last row minus its age
    down_s: float  # between the previous process and this one
    elapsed_s: float
    seconds: dict[str, float]
    first_step_s: float | None  # from the end of the start-up to the end of the first step; None without a step

    @property
    def ended_time(self) -> float:
        """The time of its last row; the process may still run."""
        return self.started_time + self.elapsed_s

    @property
    def start_up(self) -> dict[str, float]:
        """The parts of the start-up, without the prefix "start_up/"."""
        return {phase.removeprefix("start_up/"): s for phase, s in self.seconds.items() if phase.startswith("start_up")}


@dataclass(frozen=True)
class Account:
    """The time of a whole run. `seconds` has an entry for each phase, for REPEATED and for DOWN."""

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
        return sum(self.seconds.get(phase, 0.0) for phase in OF_STEPS) / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def by_name(self) -> dict[str, float]:
        """Seconds by the keys of NAMES, with the parts of the start-up added up."""
        sums = dict.fromkeys(NAMES, 0.0)
        for phase, s in self.seconds.items():
            sums[phase.partition("/")[0]] += s
        return sums

    def values(self) -> dict[str, float]:
        """Metrics: `goodput`, and `time/PART_s` in seconds for each part that took any time."""
        return {"goodput": self.goodput} | {f"time/{name}_s": s for name, s in self.by_name.items() if s > 0}


Row = dict[str, Any]


def current_account(ledger: TimeLedger) -> Account | None:
    """Return the account of the whole run so far, or None on all ranks except the main one.

    Also None if the disk cannot read it: this must not stop a run.
    """
    ledger.write()
    try:
        return None if ledger.path is None else read_account(ledger.path)
    except (OSError, ConfigError):
        return None


def read_account(path: Path) -> Account | None:
    """Return the account of a ledger.jsonl, or None if it is missing or has no complete row."""
    rows = list(read_rows(path))
    return account(rows) if rows else None


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the complete rows of a ledger in order. Half a row that a killed process left is skipped."""
    try:
        with open_regular(path) as lines:
            for line in lines:
                row = _row(line)
                if row is not None:
                    yield row
    except FileNotFoundError:
        return


def account(rows: Sequence[Row]) -> Account:
    """Add up the rows of a ledger; at least one is needed."""
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
    seconds.setdefault(TRAINING, 0.0)
    seconds[REPEATED], repeated_steps = 0.0, 0
    only_samples = "rollouts" in seconds and not seconds[TRAINING]
    for phase in () if only_samples else OF_STEPS:  # a run that only samples finds all its rollouts in files
        lost_s, lost_steps = _repeated(by_process.values(), phase)
        if lost_s:
            seconds[phase] -= lost_s
            seconds[REPEATED] += lost_s
        repeated_steps = max(repeated_steps, lost_steps)
    seconds[DOWN] = sum(process.down_s for process in processes)
    latest = next((row for row in reversed(rows) if row["from_step"] is not None), rows[-1])
    return Account(seconds, repeated_steps, latest["step"], latest["tokens"], processes)


def summary_lines(found: Account) -> list[str]:
    """Return the lines that `triaxial train` prints at its end: goodput, and the parts of the time, largest first."""
    parts = sorted(((s, name) for name, s in found.by_name.items() if s > 0), reverse=True)
    shares = ", ".join(f"{NAMES[name]} {s / found.wall_s:.1%}" for s, name in parts if s / found.wall_s >= 0.0005)
    n = len(found.processes)
    lines = [f"time: {found.wall_s:,.1f} s in {n} start{'s' if n > 1 else ''}, goodput {found.goodput:.1%}"]
    if shares:
        lines.append(f"time: {shares}")
    if found.repeated_steps:
        n = found.repeated_steps
        lines.append(f"time: {n:,} step{'s were' if n > 1 else ' was'} lost and repeated")
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
        # rounding, and rows of an older format, leave a remainder: make the phases add up to the age
        seconds=_with_remainder(last["seconds"], last["elapsed_s"]),
        first_step_s=_first_step_s(rows),
    )


def _with_remainder(seconds: dict[str, float], elapsed_s: float) -> dict[str, float]:
    remainder = elapsed_s - sum(seconds.values())
    return {**seconds, "other": seconds.get("other", 0.0) + remainder}


def _first_step_s(rows: Sequence[Row]) -> float | None:
    """Return the time outside of the start-up until the first row that has a step."""
    for row in rows:
        if row["from_step"] is not None and row["step"] == row["from_step"] + 1:
            before_s = sum(float(s) for phase, s in row["seconds"].items() if phase.startswith("start_up"))
            return float(row["elapsed_s"]) - before_s
    return None


def _between(before: Row, after: Row) -> float:
    """Return the seconds from the last row of a process to the start of the next, at least 0.

    Measured by the monotonic clock if both ran in one boot of one machine, else by the wall clocks, which may have been
    changed.
    """
    clock = "monotonic_s" if before["boot"] and before["boot"] == after["boot"] else "time"
    return max(0.0, float(after[clock] - after["elapsed_s"] - before[clock]))


def _repeated(processes: Iterable[Sequence[Row]], phase: str) -> tuple[float, int]:
    """Return the seconds of a phase and the steps that a later process or a rewind repeated.

    A process reads the rollouts of its first step from the files of the one before.
    """
    in_files = 1 if phase == "rollouts" else 0
    begun = [[row for row in rows if row["from_step"] is not None] for rows in processes]
    takes = [list(take) for rows in begun for _, take in groupby(rows, key=lambda row: row["take"])]
    lost_s, lost_steps, limit = 0.0, 0, float("inf")
    for take in reversed(takes):
        points = _seconds_by_step(take, phase)
        last_step, last_s = points[-1]
        if limit + in_files < last_step:
            kept = max(limit + in_files, points[0][0])
            lost_s += last_s - _interpolated(points, kept)
            lost_steps += int(last_step - kept)
        limit = min(limit, points[0][0])
    return lost_s, lost_steps


def _seconds_by_step(take: Sequence[Row], phase: str) -> list[tuple[int, float]]:
    """Return points (step, seconds of the phase up to it), from the start of the take."""
    first = take[0]
    points = [(int(first["from_step"]), float(first["seconds"].get(phase, 0.0)))]
    for row in take:
        points.append((max(int(row["step"]), points[-1][0]), float(row["seconds"].get(phase, 0.0))))
    return points


def _interpolated(points: Sequence[tuple[int, float]], step: float) -> float:
    """Interpolate the seconds at a step between two rows linearly."""
    before = points[0]
    for point in points:
        if point[0] > step:
            return before[1] + (point[1] - before[1]) * (step - before[0]) / (point[0] - before[0])
        before = point
    return before[1]


def _row(line: bytes) -> Row | None:
    """Parse a row, or return None if a field is missing or has another type than this module needs."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = decode_json(line)
        seconds: dict[str, float] = {}
        for phase, s in row["seconds"].items():
            known = phase if phase.partition("/")[0] in PHASES else "other"
            seconds[known] = seconds.get(known, 0.0) + float(s)
        whole = {key: int(row[key]) for key in ("restart_count", "world_size", "take", "step", "tokens")}
        from_step = None if row["from_step"] is None else int(row["from_step"])
        real = {key: float(row[key]) for key in ("time", "monotonic_s", "elapsed_s")}
        words = {key: str(row[key]) for key in ("process", "host", "boot")}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    if not all(math.isfinite(number) for number in (*real.values(), *seconds.values())):
        return None
    return {**words, **whole, **real, "from_step": from_step, "seconds": seconds}

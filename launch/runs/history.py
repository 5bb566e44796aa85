"""Read the files of a run directory: metrics, events, time account, checkpoints. One process, no process group.

A run may still be writing, or may have died in the middle of a line. Lines that cannot be read are skipped and counted.
"""

import math
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular, read_bytes
from gpt.telemetry.goodput import Account, read_account
from launch.processes.restarts import last_logged_step
from parallel.checkpoint.folders import list_checkpoints, published_step, step_of

METRICS, SUPERSEDED = "metrics.jsonl", "metrics.superseded.jsonl"
EVENTS, LEDGER, CONFIG, SUMMARY = "events.jsonl", "ledger.jsonl", "config.json", "train_summary.json"


@dataclass(frozen=True)
class Series:
    """The finite values of one metric, in order of steps."""

    steps: NDArray[np.int64]  # (n,)
    values: NDArray[np.float64]  # (n,)


Take = dict[str, Series]  # by the metric's name


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl."""

    time: float  # seconds since 1970
    kind: str
    step: int | None
    text: str
    fields: Mapping[str, Any]

    @property
    def about_step(self) -> int | None:
        """The step of the checkpoint that the event is about, else its own step: a background save ends later."""
        about = self.fields.get("checkpoint_step", self.step)
        return about if isinstance(about, int) and 0 <= about < 2**62 else self.step


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint on disk, not verified."""

    step: int
    name: str
    size_bytes: int
    written_time: float


@dataclass(frozen=True)
class RunHistory:
    """Everything that was found. `superseded`: steps that were lost and repeated, one take for each loss."""

    directory: Path
    metrics: Take
    superseded: list[Take]
    events: list[Event]
    account: Account | None
    checkpoints: list[StoredCheckpoint]
    config: dict[str, Any]
    summary: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        ends = [int(series.steps[-1]) for series in self.metrics.values()]
        return max([*ends, self.account.step if self.account else 0])

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        series = self.metrics.get(name)
        return None if series is None else float(series.values[-1])

    def setting(self, section: str, key: str) -> Any:
        """A value of the run's configuration, None where it has none."""
        table = self.config.get(section)
        return table.get(key) if isinstance(table, dict) else None


def read_history(directory: Path) -> RunHistory:
    """Read a run directory. ConfigError: it is not a directory, or contains no file of a run."""
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory. Give the run.directory of a training run.")
    known = (METRICS, EVENTS, LEDGER, SUMMARY, CONFIG, "checkpoints")
    if not any((directory / name).exists() for name in known):
        raise ConfigError(f"{directory} is not a run directory: it contains none of {', '.join(known)}")
    problems: list[str] = []
    takes = read_takes(directory / METRICS, problems)
    lost = read_takes(directory / SUPERSEDED, problems)
    metrics, lost_here = settle(takes)
    return RunHistory(
        directory=directory,
        metrics=metrics,
        superseded=[*lost, *lost_here],
        events=read_events(directory / EVENTS, problems),
        account=read_account(directory / LEDGER),
        checkpoints=stored_checkpoints(directory / "checkpoints"),
        config=_table(directory / CONFIG, problems),
        summary=_table(directory / SUMMARY, problems),
        problems=problems,
    )


def read_takes(path: Path, problems: list[str]) -> list[Take]:
    """The metrics of a file. A new take starts wherever the steps go back."""
    takes: list[dict[str, tuple[array[int], array[float]]]] = []
    last_step = math.inf
    for record in _objects(path, problems):
        step = record.get("step")
        if not isinstance(step, int) or not 0 <= step < 2**62:
            continue
        if step < last_step:
            takes.append({})
        last_step = step
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)) and _finite(value):
                steps, values = takes[-1].setdefault(name, (array("q"), array("d")))
                steps.append(step)
                values.append(value)
    return [{name: Series(np.array(s), np.array(v)) for name, (s, v) in take.items()} for take in takes]


def settle(takes: list[Take]) -> tuple[Take, list[Take]]:
    """Join several takes: keep the last take of each step. Return the joined take, and what was superseded."""
    kept: list[Take] = []
    lost: list[Take] = []
    limit = 2**62
    for take in reversed(takes):
        kept.insert(0, {name: part for name, series in take.items() if (part := _where(series, series.steps < limit))})
        past = {name: part for name, series in take.items() if (part := _where(series, series.steps >= limit))}
        if past:
            lost.insert(0, past)
        limit = min([limit, *(int(series.steps[0]) for series in take.values())])
    names = dict.fromkeys(name for take in kept for name in take)
    joined = {name: [take[name] for take in kept if name in take] for name in names}
    return {
        name: Series(np.concatenate([part.steps for part in parts]), np.concatenate([part.values for part in parts]))
        for name, parts in joined.items()
    }, lost


def runs_without_gaps(series: Series) -> list[Series]:
    """Split a series wherever a gap is more than ten times the median distance between steps."""
    gaps = np.diff(series.steps)
    if not gaps.size:
        return [series]
    cuts = np.flatnonzero(gaps > 10 * np.median(gaps)) + 1
    parts = zip(np.split(series.steps, cuts), np.split(series.values, cuts), strict=True)
    return [Series(steps, values) for steps, values in parts]


def read_events(path: Path, problems: list[str]) -> list[Event]:
    events = []
    for record in _objects(path, problems):
        time, step = record.pop("time", None), record.pop("step", None)
        kind, text = record.pop("kind", None), record.pop("text", "")
        at = _seconds_since_1970(time)
        if at is not None and isinstance(kind, str):
            whole = step if isinstance(step, int) and 0 <= step < 2**62 else None
            events.append(Event(at, kind, whole, str(text), record))
    return events


def stored_checkpoints(directory: Path) -> list[StoredCheckpoint]:
    """The checkpoints of a directory, oldest first. One that is deleted meanwhile is left out."""
    found = []
    try:
        for path in reversed(list_checkpoints(directory)):
            try:
                sizes = [entry.stat(follow_symlinks=False) for entry in path.iterdir()]
            except OSError:
                continue
            step = step_of(path.name)
            if sizes and step is not None:
                found.append(
                    StoredCheckpoint(step, path.name, sum(s.st_size for s in sizes), max(s.st_mtime for s in sizes))
                )
    except NotADirectoryError:
        return []
    return found


def _objects(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines. A last line without a newline is still being written."""
    damaged = 0
    try:
        with open_regular(path) as lines:
            for line in lines:
                try:
                    record = decode_json(line)
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    yield record
                elif line.endswith(b"\n"):
                    damaged += 1
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path.name}: {(error.strerror or 'cannot be read').lower()}")
    if damaged:
        problems.append(f"{path.name}: {damaged:,} line{'s' if damaged > 1 else ''} that cannot be read, skipped")


def _table(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist."""
    try:
        table = decode_json(read_bytes(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        table = None
    if not isinstance(table, dict):
        problems.append(f"{path.name}: cannot be read")
        return {}
    return table


def _seconds_since_1970(time: object) -> float | None:
    """Parse a time of events.jsonl: ISO 8601 with a time zone."""
    try:
        return datetime.fromisoformat(time).timestamp() if isinstance(time, str) else None
    except (ValueError, OverflowError, OSError):
        return None


def _where(series: Series, chosen: NDArray[np.bool_]) -> Series | None:
    return Series(series.steps[chosen], series.values[chosen]) if chosen.any() else None


def _finite(value: float) -> bool:
    """Return whether a value can be plotted: no NaN or infinity, and small enough that differences do not overflow."""
    return abs(value) < 1e200


def furthest_step(run_directory: Path) -> int:
    """The step that the run has about reached: that of its newest checkpoint, or a later one in its log."""
    saved = list[Path]()
    with suppress(OSError):
        saved = list_checkpoints(run_directory / "checkpoints")
    return max([last_logged_step(run_directory), *map(published_step, saved[:1])])

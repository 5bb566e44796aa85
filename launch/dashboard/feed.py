"""Follow the files of one run: first a few lines of the long ones, then all lines, then those that the run adds."""

import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular
from gpt.telemetry.goodput import Account
from launch.runs.history import (
    CONFIG,
    EVENTS,
    LEDGER,
    METRICS,
    SUMMARY,
    SUPERSEDED,
    RunHistory,
    account_of,
    check_run_directory,
    read_events,
    read_table,
    read_takes,
    stored_checkpoints,
)
from launch.runs.metrics_takes import MetricsTakes
from launch.runs.prediction import PREDICTION, prediction_of
from launch.runs.sampled_lines import records_between, some_records
from launch.runs.series import Series, Take, settle, thinned
from launch.runs.software import SOFTWARE

SAMPLED = 3000  # lines of metrics.jsonl for the first picture
LOOK_S = 2.0  # between two looks at a file that grows, and before the first, so that the first picture comes sooner
ACCOUNT_S = 20.0  # between two readings of the time account, which is read whole
DETAIL_BYTES = 8 * 2**20  # of metrics.jsonl, read for a part of a long series
_MAX_S = 1e11  # 3,000 years

Clock = dict[str, list[float]]  # "step" and "seconds" since the first start, for some rows of the ledger


class RunFeed:
    """The files of a run. `history`, `clock` and `version` may be read while another thread follows the files.

    ConfigError: the directory is not that of a run.
    """

    def __init__(self, directory: Path) -> None:
        check_run_directory(directory)
        self.directory = directory
        self.version = 0  # changes with the history
        self._reader = _MetricsReader(directory / METRICS)
        self._account: Account | None = None
        self._account_read = -ACCOUNT_S
        self._seen: object = None
        self.clock = read_clock(directory / LEDGER)
        takes = MetricsTakes()
        for record in some_records(directory / METRICS, SAMPLED):
            takes.add(record)
        self.history = self._read_history(takes.takes(), [], [])

    def follow(self, stop: threading.Event) -> None:
        """Read all files, then what the run adds, until `stop` is set. For a thread of its own."""
        while not stop.wait(LOOK_S):
            seen = self._signature()
            if seen != self._seen:
                self._seen = seen
                with suppress(OSError, ConfigError):  # the next look tries again
                    self._read_all(stop)

    def read_once(self) -> None:
        """Read all files whole."""
        self._read_all(threading.Event())

    def series(self, name: str, *, most: int, first: int | None = None, last: int | None = None) -> Series | None:
        """A metric in at most `most` points, from step `first` to `last`. None if the run has not logged it.

        A part of a thinned series is read again from the file, if it is not too long.
        """
        whole = self.history.metrics.get(name)
        if whole is None or first is None or last is None:
            return whole and thinned(whole, most)
        part = whole.where(lambda steps: (steps >= first) & (steps <= last))
        if whole.newest is not None and (part is None or len(part.steps) < most):
            takes = MetricsTakes()
            with suppress(OSError, ConfigError):
                path = self.directory / METRICS
                for record in records_between(path, first, last, most_bytes=DETAIL_BYTES) or []:
                    takes.add(record)
            part = settle(takes.takes())[0].get(name, part)
        return part and thinned(part, most)

    def _signature(self) -> object:
        """Changes whenever a file of the run does."""
        found: list[object] = []
        for name in (METRICS, EVENTS, SUMMARY, CONFIG, "checkpoints"):
            with suppress(OSError):
                stat = (self.directory / name).stat()
                found.append((name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return found

    def _read_all(self, stop: threading.Event) -> None:
        if not self._reader.read(stop):
            return
        problems = [f"{METRICS}: {n:,} damaged lines, skipped"] if (n := self._reader.damaged) else []
        if time.monotonic() - self._account_read > ACCOUNT_S:
            self._account, self._account_read = account_of(self.directory / LEDGER, problems), time.monotonic()
            self.clock = read_clock(self.directory / LEDGER)
        superseded = read_takes(self.directory / SUPERSEDED, problems)
        self.history = self._read_history(self._reader.takes.takes(), superseded, problems)
        self.version += 1

    def _read_history(self, takes: list[Take], superseded: list[Take], problems: list[str]) -> RunHistory:
        metrics, lost = settle(takes)
        return RunHistory(
            directory=self.directory,
            metrics=metrics,
            superseded=[*superseded, *lost],
            events=read_events(self.directory / EVENTS, problems),
            account=self._account,
            checkpoints=stored_checkpoints(self.directory / "checkpoints"),
            config=read_table(self.directory / CONFIG, problems),
            summary=read_table(self.directory / SUMMARY, problems),
            prediction=prediction_of(read_table(self.directory / PREDICTION, problems)),
            software=read_table(self.directory / SOFTWARE, problems),
            problems=problems,
        )


class _MetricsReader:
    """Reads a growing file of lines from where it stopped; from the start if the file was replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_again(None)

    def read(self, stop: threading.Event) -> bool:
        """Read to the end of the file. Return False if `stop` was set before."""
        try:
            file = open_regular(self.path)
        except FileNotFoundError:
            self._start_again(None)
            return True
        with file:
            self._go_on(file)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is still being written
                self._offset += len(line)
                self._add(line)
                if stop.is_set():
                    return False
        return True

    def _go_on(self, file: BinaryIO) -> None:
        stat = os.fstat(file.fileno())
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            self._start_again(stat.st_ino)
        file.seek(self._offset)

    def _start_again(self, inode: int | None) -> None:
        self.takes, self.damaged, self._offset, self._inode = MetricsTakes(), 0, 0, inode

    def _add(self, line: bytes) -> None:
        try:
            record = decode_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            self.takes.add(record)
        else:
            self.damaged += 1


def run_directories(given: Iterable[Path]) -> list[Path]:
    """The run directories given, and those in a folder that is not one. ConfigError: there is none."""
    found = list[Path]()
    for path in given:
        try:
            check_run_directory(path)
            found.append(path)
        except ConfigError as error:
            inside = [child for child in sorted(path.iterdir()) if _is_run(child)] if path.is_dir() else []
            if not inside:
                raise error from None
            found += inside
    return found


def _is_run(path: Path) -> bool:
    try:
        check_run_directory(path)
    except ConfigError:
        return False
    return True


def read_clock(path: Path, most: int = 1000) -> Clock:
    """Steps and the seconds since the run's first start, from some rows of a time ledger. Empty if there is none."""
    steps, seconds = list[float](), list[float]()
    first: float | None = None
    for row in some_records(path, most):
        step, at, age = row.get("step"), row.get("time"), row.get("elapsed_s")
        if not (isinstance(step, int) and isinstance(at, float) and isinstance(age, (int, float))):
            continue
        if not (abs(at) < _MAX_S and abs(age) < _MAX_S):
            continue  # of a damaged line
        first = at - age if first is None else first
        while steps and steps[-1] >= step:  # the steps after a restart are taken again
            steps.pop()
            seconds.pop()
        steps.append(step)
        seconds.append(at - first)
    return {"step": steps, "seconds": seconds}


def tokens_of(history: RunHistory, most: int = 1000) -> dict[str, list[float]]:
    """Steps and the tokens seen at their end."""
    seen = history.metrics.get("tokens_seen")
    if seen is None:
        return {"step": [], "tokens": []}
    points = thinned(seen, most)
    first, _ = points.extremes  # a point has the step of its first value, which is the smallest
    return {"step": points.steps.tolist(), "tokens": first.tolist()}

"""Read the files of a run directory: metrics, events, time account, checkpoints. One process, no process group.

A run may still be writing, or may have died in the middle of a line. Lines that cannot be read are skipped and counted.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular, read_bytes
from gpt.telemetry.goodput import Account, read_account
from launch.processes.restarts import last_logged_step
from launch.runs.metrics_takes import MetricsTakes
from launch.runs.prediction import PREDICTION, KeptPrediction, prediction_of
from launch.runs.series import Take, settle
from launch.runs.software import SOFTWARE
from parallel.checkpoint.folders import list_checkpoints, published_step, step_of

METRICS, SUPERSEDED = "metrics.jsonl", "metrics.superseded.jsonl"
EVENTS, LEDGER, CONFIG, SUMMARY = "events.jsonl", "ledger.jsonl", "config.json", "train_summary.json"
_REPORTED_BYTES = 1 << 18  # between two calls of `advance`


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
    prediction: KeptPrediction | None = None
    software: dict[str, Any] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        ends = [series.last_step for series in self.metrics.values()]
        return max([*ends, self.account.step if self.account else 0])

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        series = self.metrics.get(name)
        return None if series is None else float(series.recent[-1])

    def setting(self, section: str, key: str) -> Any:
        """A value of the run's configuration, None where it has none."""
        table = self.config.get(section)
        return table.get(key) if isinstance(table, dict) else None


def read_history(directory: Path, *, advance: Callable[[int], None] = lambda n_bytes: None) -> RunHistory:
    """Read a run directory. ConfigError: it is not a directory, or contains no file of a run.

    `advance` gets the bytes of metrics.jsonl that were read since its last call. It is the only file that grows long.
    """
    check_run_directory(directory)
    problems: list[str] = []
    takes = read_takes(directory / METRICS, problems, advance)
    lost = read_takes(directory / SUPERSEDED, problems)
    metrics, lost_here = settle(takes)
    return RunHistory(
        directory=directory,
        metrics=metrics,
        superseded=[*lost, *lost_here],
        events=read_events(directory / EVENTS, problems),
        account=account_of(directory / LEDGER, problems),
        checkpoints=stored_checkpoints(directory / "checkpoints"),
        config=read_table(directory / CONFIG, problems),
        summary=read_table(directory / SUMMARY, problems),
        prediction=prediction_of(read_table(directory / PREDICTION, problems)),
        software=read_table(directory / SOFTWARE, problems),
        problems=problems,
    )


def check_run_directory(directory: Path) -> None:
    """ConfigError: it is not a directory, or contains no file of a run."""
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory. Give the run.directory of a training run.")
    known = (METRICS, EVENTS, LEDGER, SUMMARY, CONFIG, "checkpoints")
    if not any((directory / name).exists() for name in known):
        inside = directory / "run"  # where the recipes of `triaxial init` put it
        meant = f". Did you mean {inside}?" if any((inside / name).exists() for name in known) else ""
        raise ConfigError(f"{directory} is not a run directory: it contains none of {', '.join(known)}{meant}")


def read_takes(path: Path, problems: list[str], advance: Callable[[int], None] = lambda n_bytes: None) -> list[Take]:
    """The metrics of a file. A new take starts wherever the steps go back."""
    takes = MetricsTakes()
    for record in objects(path, problems, advance):
        takes.add(record)
    return takes.takes()


def read_events(path: Path, problems: list[str]) -> list[Event]:
    events = []
    for record in objects(path, problems):
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


def objects(
    path: Path, problems: list[str], advance: Callable[[int], None] = lambda n_bytes: None
) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines. A last line without a newline is still being written."""
    damaged = unreported = 0
    try:
        with open_regular(path) as lines:
            for line in lines:
                unreported += len(line)
                if unreported >= _REPORTED_BYTES:
                    advance(unreported)
                    unreported = 0
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
    except ConfigError:
        problems.append(f"{path.name}: not a regular file")
    if damaged:
        problems.append(f"{path.name}: {damaged:,} line{'s' if damaged > 1 else ''} that cannot be read, skipped")


def account_of(path: Path, problems: list[str]) -> Account | None:
    try:
        return read_account(path)
    except (OSError, ConfigError):
        problems.append(f"{path.name}: cannot be read")
        return None


def read_table(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist."""
    try:
        table = decode_json(read_bytes(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, ConfigError):
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


def furthest_step(run_directory: Path) -> int:
    """The step that the run has about reached: that of its newest checkpoint, or a later one in its log."""
    saved = list[Path]()
    with suppress(OSError):
        saved = list_checkpoints(run_directory / "checkpoints")
    return max([last_logged_step(run_directory), *map(published_step, saved[:1])])

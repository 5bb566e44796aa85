"""Where the monitors of a run's ranks meet once something is wrong, RUN/hangs: alarm and reports; decides nothing.

No torch is imported. Everything here may wait as long as the file system does, and raises OSError where it fails.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.files.atomic import new_beside, replace_file
from gpt.telemetry.event_log import append_event
from parallel.health.evidence import Collective, Link
from parallel.health.verdict import Report, Verdict


@dataclass(frozen=True)
class Member:
    """A rank as the others must know it. `machine` tells processes apart that can signal each other."""

    host: str
    machine: str
    pid: int
    started_at: str


@dataclass(frozen=True)
class Watched:
    """What a monitor is told of its rank and of the others."""

    rank: int
    members: tuple[Member, ...]  # by rank
    incarnation: str  # one word for all ranks of this start of the run
    hangs: str  # the folder RUN/hangs
    main_thread: int
    recorder: str  # socket of torch's flight recorder; "" where there is none
    error_file: str  # by which torch elastic learns why a rank failed; "" where nobody asks
    launcher_pid: int
    launcher_started_at: str
    hang_timeout_s: float
    beat_file: int  # open files, inherited
    stacks_file: int

    @property
    def me(self) -> Member:
        return self.members[self.rank]


def alarm_file(watched: Watched) -> Path:
    """The file whose existence is the alarm of this start of the run; it holds the name of the folder of reports."""
    return Path(watched.hangs) / f".alarm-{watched.incarnation}"


def hang_folder(watched: Watched) -> Path:
    """The folder of this hang's reports, the same for all ranks: the first that asks names it after the time."""
    alarm, hangs = alarm_file(watched), Path(watched.hangs)
    if not alarm.exists():
        name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        if (hangs / name).exists():
            name += f"-{watched.incarnation[:6]}"
        mine = new_beside(alarm)
        hangs.mkdir(parents=True, exist_ok=True)
        replace_file(mine, name)
        try:
            os.link(mine, alarm)  # the first one wins, on shared file systems too
            mine.unlink()
        except FileExistsError:
            mine.unlink()
        except OSError:  # a file system without links: of two at the same moment, one reports into a folder of its own
            mine.replace(alarm)
    folder = hangs / alarm.read_text(encoding="utf-8")
    folder.mkdir(exist_ok=True)
    return folder


def gather_reports(watched: Watched, folder: Path, reports: dict[str, Report]) -> None:
    """Add those that have come since the last call, by file name: of a thousand ranks, on a slow file system, too many
    to be read in the last moment."""
    probe = folder / f".probe-{watched.rank}"
    probe.touch()  # a change of our own makes a network file system show those of others
    probe.unlink()
    for path in sorted(folder.glob("rank-*.json")):
        if path.name not in reports:
            reports[path.name] = _read_report(path)


def leads(watched: Watched, folder: Path) -> bool:
    """Whether the monitor of this rank decides: the lowest of those that are there to do it. Reads the reports of lower
    ranks, until it knows: when rank 0 is slow, all monitors ask at the same moment."""
    for path in sorted(folder.glob("rank-*.json")):
        report = _read_report(path)
        if report.rank >= watched.rank:
            break
        if report.rank == 0 or report.status != "died":
            return False
    return True


def _read_report(path: Path) -> Report:
    return parse_report(json.loads(path.read_text(encoding="utf-8")))


def parse_report(table: dict[str, Any]) -> Report:
    """A report as `dataclasses.asdict` and JSON have left it."""
    for key in ("pending", "last"):
        table[key] = Collective(**table[key]) if table[key] else None
    links = tuple(Link(**link) for link in table["dead_links"])
    rest = {key: tuple(table[key]) for key in ("frames", "departures", "addresses")}
    return Report(**{**table, **rest, "dead_links": links})


def publish(path: Path, text: str) -> None:
    """A file that is never half there."""
    replace_file(path, text)


def leave_event(folder: Path, verdict: Verdict, reports: list[Report], line: str) -> None:
    """A line in the run's events, beside those of the training loop."""
    step = min((report.step for report in reports), default=None)
    fields = {"ranks": list(verdict.ranks), "finding": verdict.kind, "reports": str(folder)}
    text = line.removeprefix("triaxial: error: ")  # it stands among events, not on a console
    append_event(folder.parents[1] / "events.jsonl", "hang", step=step, text=text, fields=fields)

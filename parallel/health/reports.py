"""The meeting point of a run's monitors, RUN/hangs: the alarm, and one report per rank. No torch.

Every function here may block as long as the file system does, and raises OSError if it fails.
"""

import bisect
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.files.atomic import hidden_name, replace_file
from gpt.files.json_text import decode_json
from parallel.health.collective_record import RecordedCollective
from parallel.health.heartbeat import LOST, STATUS
from parallel.health.process_evidence import Link


@dataclass(frozen=True)
class Member:
    """A rank's process, as the other monitors know it. Processes with equal `machine` can signal each other by pid."""

    host: str
    machine: str
    pid: int
    started_at: str


@dataclass(frozen=True)
class MonitorSettings:
    """Facts that a monitor needs about its rank and the other ranks."""

    rank: int
    world_size: int
    members: Mapping[int, Member]  # by rank, of this machine only: with thousands of ranks, all would be megabytes
    hosts: tuple[tuple[int, str], ...]  # of all ranks: each (rank, host) at which the host changes
    incarnation: str  # names this start of the run, the same on all ranks
    hangs: str  # the folder RUN/hangs
    main_thread: int
    recorder: str  # socket of torch's flight recorder; "" if there is none
    error_file: str  # file in which torch elastic reads why a rank failed; "" if there is none
    launcher_pid: int
    launcher_started_at: str
    hang_timeout_s: float
    beat_file: int  # open files, inherited
    stacks_file: int

    @property
    def me(self) -> Member:
        return self.members[self.rank]

    def host_of(self, rank: int) -> str:
        """The host of any rank."""
        return self.hosts[bisect.bisect_right(self.hosts, rank, key=lambda change: change[0]) - 1][1]


@dataclass(frozen=True)
class HangReport:
    """The observations of one rank's monitor. `pending` is the oldest recorded collective that the rank waits in."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    still_s: float  # since the last sign of progress
    status: str = "running"  # or "lost its peers", "failed", "died"
    note: str = ""
    died_of: str = ""  # the signal, if it is known
    state: str = "S"  # the kernel's letter
    wait_channel: str = ""
    frames: tuple[str, ...] = ()  # of the main thread, innermost first
    pending: RecordedCollective | None = None
    last: RecordedCollective | None = None
    counts: Mapping[str, int] | None = None  # per group, the number of the last collective issued
    departures: tuple[str, ...] = ()
    dead_links: tuple[Link, ...] = ()
    addresses: tuple[str, ...] = ()

    @property
    def waits_for_others(self) -> bool:
        """Return whether the rank is in a collective, a send or a receive.

        torch does not record sends and receives of gloo, but the stack shows them.
        """
        in_torch = bool(self.frames) and "/torch/distributed/" in self.frames[0]
        in_collective = self.pending is not None and not self.pending.is_background
        return in_collective or in_torch or self.status == STATUS[LOST]

    @property
    def title(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


def by_machine(members: Sequence[Member]) -> list[dict[int, Member]]:
    """For each rank, the ranks of its machine. `members`: by rank."""
    machines: dict[str, dict[int, Member]] = {}
    for rank, member in enumerate(members):
        machines.setdefault(member.machine, {})[rank] = member
    return [machines[member.machine] for member in members]


def host_changes(hosts: Sequence[str]) -> tuple[tuple[int, str], ...]:
    """Each (rank, host) at which the host changes. `hosts`: by rank."""
    return tuple((rank, host) for rank, host in enumerate(hosts) if rank == 0 or host != hosts[rank - 1])


def alarm_file(settings: MonitorSettings) -> Path:
    """Return the file whose existence is the alarm of this start of the run. It holds the name of the report folder."""
    return Path(settings.hangs) / f".alarm-{settings.incarnation}"


def hang_folder(settings: MonitorSettings) -> Path:
    """Return the folder for the reports of this hang, the same for all ranks. The first caller names it by the time."""
    alarm, hangs = alarm_file(settings), Path(settings.hangs)
    if not alarm.exists():
        name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        if (hangs / name).exists():
            name += f"-{settings.incarnation[:6]}"
        mine = hidden_name(alarm)
        hangs.mkdir(exist_ok=True)  # not its parents: a deleted run directory is not made again
        replace_file(mine, name)
        try:
            os.link(mine, alarm)  # the first one wins, on shared file systems too
            mine.unlink()
        except FileExistsError:
            mine.unlink()
        except OSError:  # no hard links here: if two ranks come at the same moment, one reports into its own folder
            mine.replace(alarm)
    folder = hangs / alarm.read_text(encoding="utf-8")
    folder.mkdir(exist_ok=True)
    return folder


def gather_reports(settings: MonitorSettings, folder: Path, reports: dict[str, HangReport]) -> None:
    """Add the reports that arrived since the last call, by file name.

    Reading a thousand reports from a slow file system at the last moment would take too long.
    """
    probe = folder / f".probe-{settings.rank}"
    probe.touch()  # after a change of our own, a network file system shows the files of others
    probe.unlink()
    for path in sorted(folder.glob("rank-*.json")):
        if path.name not in reports:
            reports[path.name] = _read_report(path)


def take_lead(settings: MonitorSettings, folder: Path) -> bool:
    """Return whether this monitor decides: rank 0's does, or else the first one that asks.

    A monitor looks for one or two files, for any number of ranks: all may look at the same moment.
    """
    if settings.rank != 0 and (folder / report_name(0)).exists():
        return False
    try:
        os.close(os.open(folder / "deciding", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        return False
    return True


def report_name(rank: int) -> str:
    """File name of a rank's report."""
    return f"rank-{rank:05}.json"


def _read_report(path: Path) -> HangReport:
    return parse_report(decode_json(path.read_text(encoding="utf-8")))


def parse_report(table: dict[str, Any]) -> HangReport:
    """Rebuild a report from the JSON of its `dataclasses.asdict`."""
    for key in ("pending", "last"):
        table[key] = RecordedCollective(**table[key]) if table[key] else None
    links = tuple(Link(**link) for link in table["dead_links"])
    rest = {key: tuple(table[key]) for key in ("frames", "departures", "addresses")}
    return HangReport(**{**table, **rest, "dead_links": links})

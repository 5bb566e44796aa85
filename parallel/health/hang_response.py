"""The response of a monitor to a fault: report, agree on a verdict with the other monitors, kill its rank.

Monitors communicate through the run directory, and only then. The first one creates RUN/hangs/TIME. Each leaves its
report there. The monitor of rank 0 decides which rank is to blame and prints the verdict; if it is silent, the first
other monitor that asks does. Then each monitor kills its rank. An unresponsive directory delays no kill.
No torch.
"""

import contextlib
import dataclasses
import json
import mmap
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.files.json_text import decode_json
from gpt.telemetry.event_log import append_event
from parallel.health import process_evidence
from parallel.health.collective_record import RecordedCollective, departures, read_collectives
from parallel.health.heartbeat import ALARM_AT, FAILED, RUNNING, STATUS, Beat
from parallel.health.reports import (
    HangReport,
    Member,
    MonitorSettings,
    gather_reports,
    hang_folder,
    report_name,
    take_lead,
)
from parallel.health.verdict import OF_A_NODE, Verdict, decide, rank_lines, verdict_lines

EXIT_S = 10.0  # how long a rank that failed may take to end without help
GATHER_S = 3.0  # time from the alarm to the verdict, which uses the reports present by then
READ_S = 0.001  # more time for each rank: one monitor reads the reports of all
DEPUTY_S = 0.5  # how much later another monitor decides, if that of rank 0 has not
STACKS_SIGNAL = signal.SIGRTMIN + 10 if sys.platform == "linux" else signal.SIGUSR2  # nothing else uses it
MAX_COLLECTIVES = 100  # in the text of a report


@dataclass
class Exchange:
    """The results of talking to the other monitors; a thread fills them in."""

    died_of: str  # the signal that ended our own rank, if it is known
    report: HangReport | None = None  # of our own rank
    decision: dict[str, Any] | None = None
    trouble: str = "no answer in time"


def end_job(settings: MonitorSettings, shared: mmap.mmap, beat: Beat, still_s: float, *, died_of: str = "") -> None:
    """Report, make or await the verdict, then kill the rank and exit. Takes `response_s` and at most 1 second more."""
    shared[ALARM_AT] = 1
    ends_at = time.monotonic() + response_s(settings.world_size)
    exchange = Exchange(died_of)
    thread = threading.Thread(target=exchange_reports, args=(settings, beat, still_s, exchange), daemon=True)
    thread.start()  # in a thread, because a directory that does not respond must not delay the end
    thread.join(ends_at - time.monotonic())
    if exchange.decision is not None:
        line, silent = str(exchange.decision["lines"][0]), list(exchange.decision["silent"])
    else:
        lines = lines_without_verdict(settings, beat, still_s, exchange)
        line, silent = lines[0], []
        _run_within(DEPUTY_S, lambda: print("\n".join(lines), file=sys.stderr, flush=True))
    # Without a verdict, a rank that was killed has no message: its exit status tells the launcher more.
    if exchange.decision is not None or not died(exchange):
        _run_within(DEPUTY_S, lambda: write_error_file(settings, line))
    if beat.status == FAILED:
        process_evidence.exit_of_parent(settings.me.pid)(EXIT_S)  # it has printed its error and is about to end
    for rank in {settings.rank, *silent} & set(settings.members):
        _kill(settings.members[rank])
    exit_monitor(settings)


def response_s(world_size: int) -> float:
    """Seconds from the alarm until each monitor kills its rank, with a verdict or without."""
    return GATHER_S + world_size * READ_S + 2 * DEPUTY_S


def lines_without_verdict(settings: MonitorSettings, beat: Beat, still_s: float, exchange: Exchange) -> list[str]:
    """Describe this rank alone, if the report folder gave no verdict: the disk may be full, or may not answer."""
    me = f"rank {settings.rank} ({settings.me.host}, pid {settings.me.pid})"
    where = f"in step {beat.step:,} ({beat.phase})"
    what = f"no progress for {still_s:.1f} s: {me}"
    if died(exchange) or beat.status != RUNNING:
        what = f"{me} {'died' if died(exchange) else STATUS[beat.status]}"
    return [
        f"triaxial: error: {what} {where}; no verdict on which rank is to blame",
        *(rank_lines(exchange.report) if exchange.report is not None else []),
        f"  no reports could be exchanged in {settings.hangs} ({exchange.trouble}); the ranks end now",
    ]


def died(exchange: Exchange) -> bool:
    """Return whether this rank ended without a message, as after a kill."""
    return exchange.report is not None and exchange.report.status == "died"


def exchange_reports(settings: MonitorSettings, beat: Beat, still_s: float, exchange: Exchange) -> None:
    """Publish this rank's report, then read the verdict, or make it if this monitor leads."""
    began = time.monotonic()
    alive = process_evidence.is_alive(settings.me.pid, settings.me.started_at)
    try:
        exchange.report, text = collect(settings, beat, still_s, alive=alive, died_of=exchange.died_of)
        folder = hang_folder(settings)
        replace_file(folder / f"rank-{settings.rank:05}.txt", text)
        replace_file(folder / report_name(settings.rank), json.dumps(dataclasses.asdict(exchange.report), indent=1))
        if not alive and settings.rank != 0:
            exit_monitor(settings)  # there is nothing left to kill
        decided, reports = folder / "verdict.json", dict[str, HangReport]()
        gather_s = response_s(settings.world_size) - 2 * DEPUTY_S
        while time.monotonic() < began + gather_s + 2 * DEPUTY_S:
            if decided.exists():
                exchange.decision = decode_json(decided.read_text(encoding="utf-8"))
                return
            late_s = time.monotonic() - began - gather_s
            if settings.rank == 0:
                gather_reports(settings, folder, reports)
            may_decide = len(reports) == settings.world_size or late_s > (0.0 if settings.rank == 0 else DEPUTY_S)
            if may_decide and take_lead(settings, folder):
                gather_reports(settings, folder, reports)
                exchange.decision = publish_verdict(settings, folder, [reports[name] for name in sorted(reports)])
                return
            time.sleep(0.1)
    except (OSError, ValueError, ConfigError) as error:  # ValueError: the disk has damaged a report
        exchange.trouble = getattr(error, "strerror", None) or str(error)


def publish_verdict(settings: MonitorSettings, folder: Path, reports: list[HangReport]) -> dict[str, Any]:
    """Decide; write the verdict next to the reports and into the run's events; print it."""
    world_size = settings.world_size
    silent = sorted(set(range(world_size)) - {report.rank for report in reports})
    reports = sorted([*reports, *seen_without_report(settings, silent, reports)], key=lambda report: report.rank)
    verdict = decide(reports, world_size=world_size)
    lines = verdict_lines(verdict, reports, world_size=world_size, folder=str(folder))
    lines += [f"  rank {rank} runs on {settings.host_of(rank)}" for rank in silent[:3]]
    decision = {**dataclasses.asdict(verdict), "silent": silent, "world_size": world_size, "lines": lines}
    if verdict.ranks:
        decision["hosts"] = sorted({settings.host_of(rank) for rank in verdict.ranks})
        if verdict.kind in OF_A_NODE:
            replace_file(folder / "blamed_nodes", "".join(f"{host}\n" for host in decision["hosts"]))
    replace_file(folder / "verdict.txt", "\n".join(lines) + "\n")
    replace_file(folder / "verdict.json", json.dumps(decision, indent=1))
    print("\n".join(lines), file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ConfigError):  # the verdict is valid without the event
        append_hang_event(folder, verdict, reports, lines[0])
    return decision


def seen_without_report(settings: MonitorSettings, silent: list[int], reports: list[HangReport]) -> list[HangReport]:
    """Report for the silent ranks of this machine, as far as another process can see them.

    Their monitors are gone or hang. Running ranks are left out: only their own monitors can see their state.
    """
    step, found = min((report.step for report in reports), default=0), []
    for rank in set(silent) & set(settings.members):  # those of this machine
        member = settings.members[rank]
        alive = process_evidence.is_alive(member.pid, member.started_at)
        state = process_evidence.process_state(member.pid) if alive else ""
        if not alive or state in process_evidence.STOPPED:
            status = STATUS[RUNNING] if alive else "died"
            found.append(HangReport(rank, member.host, member.pid, step, "no report", 0.0, status, state=state))
    return found


def append_hang_event(folder: Path, verdict: Verdict, reports: list[HangReport], line: str) -> None:
    """Add a line to the run's events.jsonl, which the training loop writes too."""
    step = min((report.step for report in reports), default=None)
    fields = {"ranks": list(verdict.ranks), "finding": verdict.kind, "reports": str(folder)}
    text = line.removeprefix("triaxial: error: ")  # the prefix is for a console
    append_event(folder.parents[1] / "events.jsonl", "hang", step=step, text=text, fields=fields)


# ---- this rank's report ---------------------------------------------------------------------------------------------


def collect(
    settings: MonitorSettings, beat: Beat, still_s: float, *, alive: bool, died_of: str
) -> tuple[HangReport, str]:
    """Return the report of this rank, and its text for a human reader."""
    pid, me = settings.me.pid, settings.me
    state, channel = process_evidence.process_state(pid), process_evidence.waits_in_kernel(pid)
    links, addresses = process_evidence.dead_links(pid), process_evidence.addresses_of(pid)
    stopped_at = time.time_ns() if state and state in process_evidence.STOPPED else None
    recorded = None
    if alive:
        stacks, recorded = _ask(settings, stopped=stopped_at is not None)
    else:
        crash, stacks = process_evidence.crash_report(settings.stacks_file)
        died_of = crash or died_of
    # a stopped rank was continued to answer, so leave out what it issued since
    seen = [c for c in recorded or [] if stopped_at is None or c.created_ns < stopped_at]
    training = [c for c in seen if not c.is_background]  # those of background saves come between them at any time
    first_open = next((c for c in training if not c.done), None)
    report = HangReport(
        rank=settings.rank,
        host=me.host,
        pid=pid,
        step=beat.step,
        phase=beat.phase,
        still_s=round(still_s, 2),
        status="died" if beat.status == RUNNING and not alive else STATUS[beat.status],
        note=beat.note,
        died_of=died_of,
        state=state,
        wait_channel=channel,
        frames=tuple(process_evidence.main_frames(stacks, settings.main_thread))[:20],
        pending=first_open or next((c for c in seen if not c.done), None),
        last=next(reversed(training or seen), None),
        counts={collective.group: collective.number for collective in seen},
        departures=tuple(departures(training)),
        dead_links=tuple(links[:20]),
        addresses=tuple(addresses[:20]),
    )
    return report, report_text(report, stacks, None if recorded is None else seen)


def report_text(report: HangReport, stacks: str, collectives: list[RecordedCollective] | None) -> str:
    """Write a report for a human reader. `collectives` None: the flight recorder did not answer."""
    facts = (
        f"process state {report.state or 'gone'}",
        report.died_of,
        report.wait_channel and f"in {report.wait_channel}",
        report.note,
    )
    lines = [
        f"{report.title}: {report.status} in step {report.step} ({report.phase}), no progress for "
        f"{report.still_s:.1f} s",
        "; ".join(filter(None, facts)),
        "\nStacks of all threads:\n",
        stacks or "none: the process did not answer",
        f"\nThe last {MAX_COLLECTIVES} collectives, newest last (> is not done):\n"
        if collectives is not None
        else "\nNo collectives: the flight recorder did not answer",
        *(f"{' ' if c.done else '>'} {c.created_ns} {c}" for c in (collectives or [])[-MAX_COLLECTIVES:]),
        *(f"departure: {words}" for words in report.departures),
        *(f"dead link: {link}" for link in report.dead_links),
    ]
    return "\n".join(lines) + "\n"


def _ask(settings: MonitorSettings, *, stopped: bool) -> tuple[str, list[RecordedCollective] | None]:
    """Return stacks and collectives of the rank. A stopped rank is continued to answer, and stopped again."""
    pid = settings.me.pid
    stacks = process_evidence.read_stacks(pid, signal_number=STACKS_SIGNAL, file=settings.stacks_file, stopped=stopped)
    collectives = read_collectives(settings.recorder) if settings.recorder else None
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    return stacks, collectives


# ---- the end --------------------------------------------------------------------------------------------------------


def write_error_file(settings: MonitorSettings, line: str) -> None:
    """Tell torch elastic and our launcher why this rank is killed, unless the rank itself has done so."""
    if not settings.error_file or Path(settings.error_file).exists():
        return
    extra = {"py_callstack": line, "timestamp": str(int(time.time())), "watchdog": True}
    with contextlib.suppress(OSError):
        replace_file(Path(settings.error_file), json.dumps({"message": {"message": line, "extraInfo": extra}}))


def exit_monitor(settings: MonitorSettings) -> NoReturn:
    """End this process even if a thread still waits for a directory that does not answer."""
    if settings.recorder:
        shutil.rmtree(Path(settings.recorder).parent, ignore_errors=True)
    os._exit(0)


def _run_within(seconds: float, action: Callable[[], None]) -> None:
    """Run an action in a thread, with a limit on the wait: its output may go where nothing answers."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)


def _kill(member: Member) -> None:
    """Send SIGKILL to a process of this machine, if it is still the process that was there at the start."""
    if process_evidence.process_started_at(member.pid) == member.started_at:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member.pid, signal.SIGKILL)

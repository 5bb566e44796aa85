"""The process that watches one rank, reports when it or another stands still, and kills it then; imports no torch.

It is started by parallel/health/watchdog.py, one a rank, and ends with its rank. Ranks' monitors speak through the run
directory, and only once something is wrong: the first one makes RUN/hangs/TIME, each leaves its report there, that of
rank 0 (where it is silent, the lowest that is there) decides who is to blame and tells it, then each kills its rank.
A directory that does not answer delays no kill. Time is counted in the monitor's own waits, so that neither a clock
that is set nor a machine that was asleep makes a healthy rank look hung.
"""

import contextlib
import dataclasses
import json
import mmap
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from parallel.health import evidence as evidence
from parallel.health import verdict as hang_verdict
from parallel.health.heartbeat import ALARM_AT, FAILED, LOST, RUNNING, SIZE, STATUS, Beat, read_beat
from parallel.health.reports import (
    Member,
    Watched,
    alarm_file,
    gather_reports,
    hang_folder,
    leads,
    leave_event,
    publish,
)
from parallel.health.verdict import Report

POLL_S = 0.25
LOOK_S = 1.0  # how often a rank looks for an alarm of others, once it has been still for half of hang_timeout_s
EARLY_LOOK_S = 5.0  # and before: whoever waits for a rank that died may be told of it by nobody else (NCCL)
EXIT_S = 10.0  # so long may a rank that failed take to end by itself
LINGER_S = 2.0  # how long a monitor outlives a rank that failed
GATHER_S = 3.0  # after the alarm, until the verdict is made of the reports that are there
DEPUTY_S = 0.5  # then so long for another monitor to decide where that of rank 0 has not
STACKS_SIGNAL = signal.SIGRTMIN + 10 if sys.platform == "linux" else signal.SIGUSR2  # nothing else uses it
SHOWN_COLLECTIVES = 100


def main() -> None:
    told = json.load(sys.stdin)
    told["members"] = tuple(Member(**member) for member in told["members"])
    watched = Watched(**told)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # sent to the rank's whole process group; the rank decides
    watch(watched)
    leave(watched)


def watch(watched: Watched) -> None:
    """Until the rank ends, or all is over."""
    shared = mmap.mmap(watched.beat_file, SIZE)
    wait_for_exit = exit_of(watched.me.pid)
    still_s, looked_s, last, suspected, lookout = 0.0, 0.0, read_beat(shared), False, Lookout(watched)
    before = time.monotonic()
    while not wait_for_exit(POLL_S):
        now, beat = time.monotonic(), read_beat(shared)
        passed_s, before = min(now - before, 2 * POLL_S), now
        still_s = still_s + passed_s if beat.number == last.number else 0.0
        last, looked_s = beat, looked_s + passed_s
        overdue = still_s > beat.allowed_s
        if beat.status == LOST or (overdue and suspected):
            return end_job(watched, shared, beat, still_s)
        suspected = overdue
        # not by what this rank is allowed: those that are allowed less may wait for it
        late = still_s > watched.hang_timeout_s / 2
        if (late and looked_s >= LOOK_S) or min(still_s, looked_s) >= EARLY_LOOK_S:
            looked_s = 0.0
            lookout.look()
        if lookout.alarmed:
            return end_job(watched, shared, beat, still_s)
    died_of, beat = evidence.signal_of_death(watched.me.pid), read_beat(shared)
    if beat.status == FAILED:
        missed = missed_by_others(watched)
    else:  # whoever killed our launcher wants no report
        launcher_lives = evidence.is_alive(watched.launcher_pid, watched.launcher_started_at)
        missed = beat.status in (RUNNING, LOST) and launcher_lives
    if missed and len(watched.members) > 1:
        end_job(watched, shared, beat, still_s, died_of=died_of)
    print(evidence.last_words(watched.stacks_file)[1], end="", file=sys.stderr, flush=True)


def missed_by_others(watched: Watched) -> bool:
    """After the end of a rank that has said why it ends: whether others raise an alarm, since they needed it."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # nobody need wait for us who reads them to their end
        os.dup2(quiet, stream)
    lookout, ends_at = Lookout(watched), time.monotonic() + LINGER_S
    while time.monotonic() < ends_at and not lookout.alarmed:
        lookout.look()
        time.sleep(0.1)
    return lookout.alarmed


class Lookout:
    """Whether another monitor of this start of the run has raised the alarm; never waits for the file system itself."""

    def __init__(self, watched: Watched) -> None:
        self.file, self.alarmed = alarm_file(watched), False
        self.looking = threading.Thread(target=self._look, daemon=True)

    def look(self) -> None:
        """Begin to look; a look that still waits for an answer is enough."""
        if not self.looking.is_alive():
            self.looking = threading.Thread(target=self._look, daemon=True)
            self.looking.start()

    def _look(self) -> None:
        with contextlib.suppress(OSError):  # the directory is not to be had: each monitor is on its own
            self.alarmed = self.file.exists()


def exit_of(pid: int) -> Callable[[float], bool]:
    """A function that waits so many seconds for the end of our parent, the rank, and says whether it came."""
    try:
        poll = select.poll()
        poll.register(os.pidfd_open(pid), select.POLLIN)
    except (AttributeError, OSError):  # an old kernel, or it is gone
        return lambda seconds: time.sleep(seconds) or os.getppid() != pid  # type: ignore[func-returns-value]
    return lambda seconds: bool(poll.poll(seconds * 1000)) or os.getppid() != pid


# ---- once something is wrong ----------------------------------------------------------------------------------------


@dataclass
class Talk:
    """What has come of speaking with the other monitors; a thread fills it in."""

    died_of: str  # the signal that ended our own rank, as far as that is known
    report: Report | None = None  # of our own rank
    decision: dict[str, Any] | None = None
    trouble: str = "no answer in time"


def end_job(watched: Watched, shared: mmap.mmap, beat: Beat, still_s: float, *, died_of: str = "") -> None:
    """Report, hear the others, decide or hear the decision, then kill the rank. Takes less than 5 seconds."""
    shared[ALARM_AT] = 1
    ends_at = time.monotonic() + GATHER_S + 2 * DEPUTY_S
    talk = Talk(died_of)
    talker = threading.Thread(target=confer, args=(watched, beat, still_s, talk), daemon=True)
    talker.start()  # a thread, since a directory that does not answer must not delay the end
    talker.join(ends_at - time.monotonic())
    if talk.decision is not None:
        line, silent = str(talk.decision["lines"][0]), list(talk.decision["silent"])
    else:
        lines = tell_alone(watched, beat, still_s, talk)
        line, silent = lines[0], []
        within(DEPUTY_S, lambda: print("\n".join(lines), file=sys.stderr, flush=True))
    within(DEPUTY_S, lambda: leave_error_file(watched, line))
    if beat.status == FAILED:
        exit_of(watched.me.pid)(EXIT_S)  # it has said why, and is on its way
    for rank in {watched.rank, *silent}:
        kill(watched.members[rank], watched.me)
    leave(watched)


def within(seconds: float, action: Callable[[], None]) -> None:
    """Do it, but wait no longer for it: what it writes to may not answer."""
    doing = threading.Thread(target=action, daemon=True)
    doing.start()
    doing.join(seconds)


def tell_alone(watched: Watched, beat: Beat, still_s: float, talk: Talk) -> list[str]:
    """What is known of this rank by itself, where the ranks' folder gave no verdict: it may be full, or not answer."""
    me = f"rank {watched.rank} ({watched.me.host}, pid {watched.me.pid})"
    where = f"in step {beat.step:,} ({beat.phase})"
    return [
        f"triaxial: error: no progress for {still_s:.1f} s: {me} {where}; no verdict on whose fault it is",
        *(hang_verdict.about_rank(talk.report) if talk.report is not None else []),
        f"  no reports could be exchanged in {watched.hangs} ({talk.trouble}); the job is ended, to start again",
    ]


def confer(watched: Watched, beat: Beat, still_s: float, talk: Talk) -> None:
    """Leave this rank's report, then hear what has been decided of all, or decide it."""
    began = time.monotonic()
    alive = evidence.is_alive(watched.me.pid, watched.me.started_at)
    try:
        talk.report, text = collect(watched, beat, still_s, alive=alive, died_of=talk.died_of)
        folder = hang_folder(watched)
        publish(folder / f"rank-{watched.rank:05}.txt", text)
        publish(folder / f"rank-{watched.rank:05}.json", json.dumps(dataclasses.asdict(talk.report), indent=1))
        if not alive and watched.rank != 0:
            leave(watched)  # said what there is to say
        decided, reports = folder / "verdict.json", dict[str, Report]()
        while time.monotonic() < began + GATHER_S + 2 * DEPUTY_S:
            if decided.exists():
                talk.decision = json.loads(decided.read_text(encoding="utf-8"))
                return
            late_s = time.monotonic() - began - GATHER_S
            if watched.rank == 0 or (late_s > DEPUTY_S and leads(watched, folder)):
                gather_reports(watched, folder, reports)
                if late_s > 0 or len(reports) == len(watched.members):
                    talk.decision = conclude(watched, folder, [reports[name] for name in sorted(reports)])
                    return
            time.sleep(0.1)
    except OSError as error:
        talk.trouble = error.strerror or str(error)


def conclude(watched: Watched, folder: Path, reports: list[Report]) -> dict[str, Any]:
    """Decide, leave the verdict beside the reports and in the run's events, and tell it."""
    world_size = len(watched.members)
    verdict = hang_verdict.decide(reports, world_size=world_size)
    silent = sorted(set(range(world_size)) - {report.rank for report in reports})
    lines = hang_verdict.tell(verdict, reports, world_size=world_size, folder=str(folder))
    lines += [f"  rank {rank} runs on {watched.members[rank].host}" for rank in silent[:3]]
    decision = {**dataclasses.asdict(verdict), "silent": silent, "world_size": world_size, "lines": lines}
    if verdict.ranks:
        decision["hosts"] = sorted({watched.members[rank].host for rank in verdict.ranks})
    publish(folder / "verdict.txt", "\n".join(lines) + "\n")
    publish(folder / "verdict.json", json.dumps(decision, indent=1))
    print("\n".join(lines), file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):  # the verdict stands without it
        leave_event(folder, verdict, reports, lines[0])
    return decision


def collect(watched: Watched, beat: Beat, still_s: float, *, alive: bool, died_of: str) -> tuple[Report, str]:
    """This rank's report, and its text for a reader."""
    pid, me = watched.me.pid, watched.me
    state, channel = evidence.process_state(pid), evidence.waits_in_kernel(pid)
    links, addresses = evidence.dead_links(pid), evidence.addresses_of(pid)
    stopped_at = time.time_ns() if state and state in evidence.STOPPED else None
    collectives = None
    if alive:
        stacks, collectives = ask(watched, stopped=stopped_at is not None)
    else:
        crash, stacks = evidence.last_words(watched.stacks_file)
        died_of = crash or died_of
    seen = [c for c in collectives or [] if stopped_at is None or c.created_ns < stopped_at]
    ours = [c for c in seen if not c.is_beside]  # those of saves come between them whenever they like
    first_open = next((c for c in ours if not c.done), None)
    report = Report(
        rank=watched.rank,
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
        frames=tuple(evidence.main_frames(stacks, watched.main_thread))[:20],
        pending=first_open or next((c for c in seen if not c.done), None),
        last=next(reversed(ours or seen), None),
        counts={collective.group: collective.number for collective in seen},
        departures=tuple(evidence.departures(ours)),
        dead_links=tuple(links[:20]),
        addresses=tuple(addresses[:20]),
    )
    text = [
        f"{report.place}: {report.status} in step {report.step} ({report.phase}), no progress for {still_s:.1f} s",
        "; ".join(
            filter(None, [f"process state {state or 'gone'}", died_of, channel and f"in {channel}", report.note])
        ),
        "\nStacks of all threads:\n",
        stacks or "none: the process did not answer",
        f"\nThe last {SHOWN_COLLECTIVES} collectives, newest last (> is not done):\n"
        if collectives is not None
        else "\nNo collectives: the flight recorder did not answer",
        *(f"{' ' if c.done else '>'} {c.created_ns} {c}" for c in seen[-SHOWN_COLLECTIVES:]),
        *(f"departure: {words}" for words in report.departures),
        *(f"dead link: {link}" for link in links),
    ]
    return report, "\n".join(text) + "\n"


def ask(watched: Watched, *, stopped: bool) -> tuple[str, list[evidence.Collective] | None]:
    """Stacks and collectives of the rank. A stopped one is let go for it, and held again."""
    pid = watched.me.pid
    stacks = evidence.read_stacks(pid, signal_number=STACKS_SIGNAL, file=watched.stacks_file, stopped=stopped)
    collectives = evidence.read_collectives(watched.recorder) if watched.recorder else None
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    return stacks, collectives


# ---- the end --------------------------------------------------------------------------------------------------------


def leave_error_file(watched: Watched, line: str) -> None:
    """Let torch elastic, and our launcher, know why this rank is killed; a rank's own word stays."""
    if not watched.error_file or Path(watched.error_file).exists():
        return
    extra = {"py_callstack": line, "timestamp": str(int(time.time())), "watchdog": True}
    with contextlib.suppress(OSError):
        publish(Path(watched.error_file), json.dumps({"message": {"message": line, "extraInfo": extra}}))


def leave(watched: Watched) -> NoReturn:
    """End this process, though a thread may still wait for a directory that does not answer."""
    if watched.recorder:
        shutil.rmtree(Path(watched.recorder).parent, ignore_errors=True)
    os._exit(0)


def kill(member: Member, me: Member) -> None:
    """SIGKILL, if the process is one of this machine's, and the same that was there at the start."""
    if member.machine == me.machine and evidence.process_started_at(member.pid) == member.started_at:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()

"""Which rank is to blame when a job stands still, from what was seen of each; pure functions, imports no torch.

The order of the rules is the order of how sure they are: a rank that died or was stopped; one that is not in a
collective though others wait in one; one of which nobody hears; then, when all wait, one that left a collective out or
is in another one, one that is behind in a group's count, one whose connections are dead.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from parallel.health.evidence import STOPPED, Collective, Link, short_frame
from parallel.health.heartbeat import LOST, RUNNING, STATUS

SHOWN_FRAMES = 4
SHOWN_RANKS = 6
DEATHS = {"": "as of kill -9", "SIGKILL": "of SIGKILL: kill -9, or for want of memory"}


@dataclass(frozen=True)
class Report:
    """What the monitor of one rank saw. `pending`: the oldest collective that the rank waits in, as far as recorded."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    still_s: float  # since the last sign of progress
    status: str = "running"  # or "lost its peers", "failed", "died"
    note: str = ""
    died_of: str = ""  # the signal, where it is known
    state: str = "S"  # the kernel's letter
    wait_channel: str = ""
    frames: tuple[str, ...] = ()  # of the main thread, innermost first
    pending: Collective | None = None
    last: Collective | None = None
    counts: Mapping[str, int] | None = None  # per group, the number of the last collective issued
    departures: tuple[str, ...] = ()
    dead_links: tuple[Link, ...] = ()
    addresses: tuple[str, ...] = ()

    @property
    def waits_for_others(self) -> bool:
        """In a collective, a send or a receive. gloo's sends and receives are in no record, but on the stack."""
        in_torch = bool(self.frames) and "/torch/distributed/" in self.frames[0]
        in_collective = self.pending is not None and not self.pending.is_beside
        return in_collective or in_torch or self.status == STATUS[LOST]

    @property
    def place(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Verdict:
    """Who is to blame (no ranks: it cannot be told), how one knows, and in which words."""

    ranks: tuple[int, ...]
    kind: str  # died, failed, stopped, busy, silent, skipped, behind, link, unclear
    reason: str


def decide(reports: Sequence[Report], *, world_size: int) -> Verdict:
    """The verdict on the reports that came in; ranks without one are silent."""
    rules = (_aborted, _ended, _stopped, _busy, _silent, _skipped, _differs, _behind, _cut_off)
    for rule in rules:
        verdict = rule(reports, world_size)
        if verdict is not None:
            return verdict
    waiting = {str(report.pending) for report in reports if report.pending is not None}
    if len(waiting) == 1:
        return Verdict((), "unclear", f"all ranks wait in the same collective ({waiting.pop()}): a link or a device")
    return Verdict((), "unclear", "no rank is behind the others: compare the stacks")


def _aborted(reports: Sequence[Report], world_size: int) -> Verdict | None:
    """gloo ends a process that receives more than it asked for: perhaps since another one left a collective out."""
    aborted = [report for report in reports if report.status == "died" and report.died_of == "SIGABRT"]
    found = _skipped([report for report in reports if report.status != "died"], world_size) if aborted else None
    if found is None:
        return None
    return Verdict(found.ranks, found.kind, f"{found.reason}; {_named(_ranks(aborted))} aborted in a mismatched one")


def _ended(reports: Sequence[Report], world_size: int) -> Verdict | None:
    failed = [report for report in reports if report.status == "failed"]
    if failed:
        return Verdict(_ranks(failed), "failed", f"it failed: {failed[0].note}")
    died = [report for report in reports if report.status == "died"]
    if not died:
        return None
    how = DEATHS.get(died[0].died_of) or f"of {died[0].died_of}, see what it wrote"
    return Verdict(_ranks(died), "died", f"it died without a word, {how}")


def _stopped(reports: Sequence[Report], world_size: int) -> Verdict | None:
    found = [report for report in reports if report.state in STOPPED]
    return Verdict(_ranks(found), "stopped", "the process is stopped (SIGSTOP, or a debugger)") if found else None


def _busy(reports: Sequence[Report], world_size: int) -> Verdict | None:
    """Ranks that wait for nobody; of several, those that are least far."""
    busy = [report for report in reports if not report.waits_for_others and report.status == STATUS[RUNNING]]
    others = [report.rank for report in reports if report.waits_for_others]
    if not busy or (not others and len(reports) < world_size):
        return None
    least = min(report.step for report in busy)
    found = [report for report in busy if report.step == least]
    if len(found) == world_size > 1:
        return None  # no rank waits for another
    why = "it is not in a collective" + (f", while {_named(others)} wait{'s' * (len(others) == 1)}" if others else "")
    if found[0].state == "D":
        why += f"; it waits for a disk or a file system ({found[0].wait_channel})"
    return Verdict(_ranks(found), "busy", why)


def _silent(reports: Sequence[Report], world_size: int) -> Verdict | None:
    found = sorted(set(range(world_size)) - {report.rank for report in reports})
    if not found:
        return None
    return Verdict(tuple(found), "silent", "no report came: its machine is dead, frozen or cut off")


def _skipped(reports: Sequence[Report], world_size: int) -> Verdict | None:
    seen = Counter(words for report in reports for words in set(report.departures))
    alone = {report.rank: [w for w in report.departures if seen[w] == 1] for report in reports}
    found = [report for report in reports if alone[report.rank]]
    if len(found) != 1:
        return None
    return Verdict(_ranks(found), "skipped", f"its collectives differ from those before: {alone[found[0].rank][-1]}")


def _differs(reports: Sequence[Report], world_size: int) -> Verdict | None:
    """Ranks that wait in another collective than most of those with the same number in the same group."""
    places: dict[tuple[str, int], list[Report]] = {}
    for report in reports:
        if report.pending is not None:
            places.setdefault((report.pending.group, report.pending.number), []).append(report)
    for together in places.values():
        most = _majority(together, lambda report: str(report.pending))
        found = [report for report in together if report.rank not in most]
        if most and found:
            usual = next(report for report in together if report.rank in most)
            return Verdict(_ranks(found), "skipped", f"it waits in {found[0].pending}, others in {usual.pending}")
    return None


def _behind(reports: Sequence[Report], world_size: int) -> Verdict | None:
    """A rank that has not entered a collective in which others of its group wait, where none is behind another one."""
    behind: dict[int, Report] = {}
    for waiting in reports:
        pending = waiting.pending
        for report in reports if pending is not None else ():
            if pending is not None and report.counts and 0 < report.counts.get(pending.group, 0) < pending.number:
                behind[report.rank] = waiting
    if not behind:
        return None
    most = _majority(reports, lambda report: str(report.pending))
    found = [rank for rank in sorted(behind) if rank not in most]
    if not found or len(found) == len(reports):
        return None
    example = behind[found[0]]
    return Verdict(tuple(found), "behind", f"it has not entered what rank {example.rank} waits in: {example.pending}")


def _cut_off(reports: Sequence[Report], world_size: int) -> Verdict | None:
    """The machine at which most of the dead connections end, counted on both sides."""
    ends: Counter[str] = Counter()
    for report in reports:
        for remote in {link.remote.rpartition(":")[0] for link in report.dead_links}:
            ends.update({remote, *(link.local.rpartition(":")[0] for link in report.dead_links)})
    if not ends:
        return None
    (worst, count), *rest = ends.most_common()
    machines = [worst, *(ip for ip, n in rest if n == count)]
    found = [report for report in reports if set(machines) & set(report.addresses)]
    what = "its connections get no acknowledgement" if len(machines) == 1 else "the link between them is dead"
    return Verdict(_ranks(found), "link", f"{what} (address {', '.join(machines)})")


def tell(verdict: Verdict, reports: Sequence[Report], *, world_size: int, folder: str) -> list[str]:
    """The verdict in a few lines for the terminal; the first is a whole by itself."""
    by_rank = {report.rank: report for report in reports}
    culprits = [by_rank[rank] for rank in verdict.ranks if rank in by_rank]
    lines = [headline(verdict, reports, world_size=world_size)]
    for report in culprits[:2]:
        lines += about_rank(report)
    for words, ranks in _lost(reports, culprits=set(verdict.ranks))[:3]:
        lines.append(f"  {_named(ranks)} lost the peers after: {words}")
    for words, ranks in _waiting(reports, culprits=set(verdict.ranks))[:3]:
        lines.append(f"  {_named(ranks)} wait{'s' * (len(ranks) == 1)} in: {words}")
    missing = sorted(set(range(world_size)) - set(by_rank))
    if missing:
        lines.append(f"  no report of {_named(missing)}")
    lines.append(f"  reports of {len(reports)} of {world_size} ranks: {folder}; the job is ended, to start again")
    return lines


def about_rank(report: Report) -> list[str]:
    """Where a rank is, for the terminal."""
    lines = []
    if report.frames and report.status in (STATUS[RUNNING], "died"):  # else it waits to be ended
        lines.append(f"  rank {report.rank} is at: {' <- '.join(map(short_frame, report.frames[:SHOWN_FRAMES]))}")
    if report.last is not None:
        how = "which is done" if report.last.done else "still in it"
        lines.append(f"  last collective of rank {report.rank}: {report.last} ({how})")
    return lines


def headline(verdict: Verdict, reports: Sequence[Report], *, world_size: int) -> str:
    """One line: who, where, in which step, how long, why."""
    culprits = [report for report in reports if report.rank in verdict.ranks]
    still_s = max((report.still_s for report in reports), default=0.0)
    if verdict.ranks and culprits:
        first = culprits[0]
        who = first.place if len(verdict.ranks) == 1 else f"{_named(verdict.ranks)} ({first.host})"
        where = f"in step {first.step:,} ({first.phase})"
    else:
        who = _named(verdict.ranks) if verdict.ranks else "no rank to name"
        where = f"in step {min((report.step for report in reports), default=0):,}"
    ended = any(report.status in ("died", "failed") for report in reports)
    fault = "fault" if ended else f"no progress for {still_s:.1f} s"
    return f"triaxial: error: {fault} of {world_size} rank{'s' * (world_size > 1)}: {who} {where}: {verdict.reason}"


def _lost(reports: Sequence[Report], *, culprits: set[int]) -> list[tuple[str, list[int]]]:
    """What ranks that lost their peers had done last, with the ranks; the most first."""
    places: dict[str, list[int]] = {}
    for report in reports:
        if report.status == STATUS[LOST] and report.rank not in culprits:
            places.setdefault(str(report.last or report.phase), []).append(report.rank)
    return sorted(places.items(), key=lambda item: -len(item[1]))


def _waiting(reports: Sequence[Report], *, culprits: set[int]) -> list[tuple[str, list[int]]]:
    """In what the others wait, in words, with the ranks; the most first."""
    places: dict[str, list[int]] = {}
    for report in reports:
        if report.rank in culprits or report.status != STATUS[RUNNING]:
            continue
        if report.pending is not None:
            words = str(report.pending)
        else:
            words = short_frame(report.frames[0]) if report.frames else report.phase
        places.setdefault(words, []).append(report.rank)
    return sorted(places.items(), key=lambda item: -len(item[1]))


def _majority(reports: Sequence[Report], key: Callable[[Report], str]) -> set[int]:
    """The ranks of the largest set with one key, if it is more than half."""
    (most, count), *_ = Counter(map(key, reports)).most_common()
    return {report.rank for report in reports if key(report) == most} if 2 * count > len(reports) else set()


def _ranks(reports: Sequence[Report]) -> tuple[int, ...]:
    return tuple(sorted(report.rank for report in reports))


def _named(ranks: Sequence[int]) -> str:
    """'rank 3', 'ranks 3, 5' or 'ranks 3, 5, 7, 8, 9, 10 and 40 more'."""
    more = f" and {len(ranks) - SHOWN_RANKS} more" if len(ranks) > SHOWN_RANKS else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:SHOWN_RANKS]))}{more}"

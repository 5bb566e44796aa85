"""Decide which rank is to blame for a hang, from the reports of all ranks. Pure functions, no torch.

The rules run from the surest to the least sure:
1. a rank died, failed or was stopped;
2. a rank is not in a collective although others wait in one;
3. a rank sent no report;
4. all wait: a rank left a collective out or is in another one, is behind in its group, or has dead connections.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parallel.health.heartbeat import LOST, RUNNING, STATUS
from parallel.health.process_evidence import STOPPED, short_frame
from parallel.health.reports import HangReport

OF_A_NODE = ("died", "stopped", "busy", "silent", "behind", "link")  # kinds that may be the fault of a machine
MAX_FRAMES = 4  # of a stack, on the terminal
MAX_RANKS = 6  # named in one line
DEATHS = {
    "": "as with kill -9",
    "SIGKILL": "by SIGKILL: kill -9, or the machine is out of memory",
}

Reports = Sequence[HangReport]


@dataclass(frozen=True)
class Verdict:
    """The ranks to blame (empty: unknown), the kind of evidence, and the reason in words."""

    ranks: tuple[int, ...]
    kind: str  # died, failed, stopped, busy, silent, skipped, behind, link, unclear
    reason: str


def decide(reports: Reports, *, world_size: int) -> Verdict:
    """Return the verdict on the reports that arrived. Ranks without a report count as silent."""
    rules = (_aborted, _ended, _stopped, _busy, _silent, _skipped, _mismatched, _behind, _cut_off)
    for rule in rules:
        verdict = rule(reports, world_size)
        if verdict is not None:
            return verdict
    waiting = {str(report.pending) for report in reports if report.pending is not None}
    if len(waiting) == 1:
        return Verdict((), "unclear", f"all ranks wait in the same collective ({waiting.pop()}): a link or a device")
    return Verdict((), "unclear", "no rank is behind the others: compare the stacks")


def _aborted(reports: Reports, world_size: int) -> Verdict | None:
    """gloo ends a process that receives more than it asked for, perhaps because another rank left a collective out."""
    aborted = [report for report in reports if report.status == "died" and report.died_of == "SIGABRT"]
    found = _skipped([report for report in reports if report.status != "died"], world_size) if aborted else None
    if found is None:
        return None
    return Verdict(found.ranks, found.kind, f"{found.reason}; {_named(_ranks(aborted))} aborted in a mismatched one")


def _ended(reports: Reports, world_size: int) -> Verdict | None:
    failed = [report for report in reports if report.status == "failed"]
    if failed:
        return Verdict(_ranks(failed), "failed", f"it failed: {failed[0].note}")
    died = [report for report in reports if report.status == "died"]
    if not died:
        return None
    how = DEATHS.get(died[0].died_of) or f"by {died[0].died_of}, see its output"
    return Verdict(_ranks(died), "died", f"it died without an error, {how}")


def _stopped(reports: Reports, world_size: int) -> Verdict | None:
    found = [report for report in reports if report.state in STOPPED]
    return Verdict(_ranks(found), "stopped", "the process is stopped (SIGSTOP, or a debugger)") if found else None


def _busy(reports: Reports, world_size: int) -> Verdict | None:
    """Blame ranks that wait for no other rank; if there are several, those at the earliest step."""
    busy = [report for report in reports if not report.waits_for_others and report.status == STATUS[RUNNING]]
    others = [report.rank for report in reports if report.waits_for_others]
    if not busy or (not others and len(reports) < world_size):
        return None
    earliest = min(report.step for report in busy)
    found = [report for report in busy if report.step == earliest]
    if len(found) == world_size > 1:
        return None  # no rank waits for another
    why = "it is not in a collective" + (f", while {_named(others)} wait{'s' * (len(others) == 1)}" if others else "")
    if found[0].state == "D":
        why += f"; it waits for a disk or a file system ({found[0].wait_channel})"
    return Verdict(_ranks(found), "busy", why)


def _silent(reports: Reports, world_size: int) -> Verdict | None:
    found = sorted(set(range(world_size)) - {report.rank for report in reports})
    if not found:
        return None
    why = "no report came: its machine is dead, frozen or cut off, or its monitor is gone"
    return Verdict(tuple(found), "silent", why)


def _skipped(reports: Reports, world_size: int) -> Verdict | None:
    """Blame the only rank whose collectives left their pattern in a way that no other rank shares."""
    seen = Counter(words for report in reports for words in set(report.departures))
    alone = {report.rank: [words for words in report.departures if seen[words] == 1] for report in reports}
    found = [report for report in reports if alone[report.rank]]
    if len(found) != 1:
        return None
    return Verdict(_ranks(found), "skipped", f"its collectives differ from those before: {alone[found[0].rank][-1]}")


def _mismatched(reports: Reports, world_size: int) -> Verdict | None:
    """Blame ranks in another collective than most of those with the same number in the same group."""
    by_number: dict[tuple[str, int], list[HangReport]] = {}
    for report in reports:
        if report.pending is not None:
            by_number.setdefault((report.pending.group, report.pending.number), []).append(report)
    for waiting in by_number.values():
        most = _majority(waiting, lambda report: str(report.pending))
        found = [report for report in waiting if report.rank not in most]
        if most and found:
            usual = next(report for report in waiting if report.rank in most)
            return Verdict(_ranks(found), "skipped", f"it waits in {found[0].pending}, others in {usual.pending}")
    return None


def _behind(reports: Reports, world_size: int) -> Verdict | None:
    """Blame ranks that have not entered a collective in which others of their group wait."""
    furthest: dict[str, HangReport] = {}  # by group: the report that waits in the latest collective
    for report in reports:
        pending, first = report.pending, furthest.get(report.pending.group) if report.pending is not None else None
        if pending is not None and (first is None or first.pending is None or first.pending.number < pending.number):
            furthest[pending.group] = report
    behind: dict[int, HangReport] = {}  # rank: a report that waits for it
    for report in reports:
        for group, number in (report.counts or {}).items():
            waiting = furthest.get(group)
            if waiting is not None and waiting.pending is not None and 0 < number < waiting.pending.number:
                behind[report.rank] = waiting
    if not behind:
        return None
    most = _majority(reports, lambda report: str(report.pending))
    found = [rank for rank in sorted(behind) if rank not in most]
    if not found or len(found) == len(reports):
        return None
    example = behind[found[0]]
    return Verdict(tuple(found), "behind", f"it has not entered what rank {example.rank} waits in: {example.pending}")


def _cut_off(reports: Reports, world_size: int) -> Verdict | None:
    """Blame the machine at which most dead connections end, counted on both sides."""
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


# ---- the verdict on the terminal ------------------------------------------------------------------------------------


def verdict_lines(verdict: Verdict, reports: Reports, *, world_size: int, folder: str) -> list[str]:
    """Describe the verdict in a few lines for the terminal. The first line is a complete summary."""
    by_rank = {report.rank: report for report in reports}
    culprits = [by_rank[rank] for rank in verdict.ranks if rank in by_rank]
    lines = [headline(verdict, reports, world_size=world_size)]
    for report in culprits[:2]:
        lines += rank_lines(report)
    for words, ranks in _lost(reports, culprits=set(verdict.ranks))[:3]:
        lines.append(f"  {_named(ranks)} lost the peers after: {words}")
    for words, ranks in _waiting(reports, culprits=set(verdict.ranks))[:3]:
        lines.append(f"  {_named(ranks)} wait{'s' * (len(ranks) == 1)} in: {words}")
    missing = sorted(set(range(world_size)) - set(by_rank))
    if missing:
        lines.append(f"  no report of {_named(missing)}")
    lines.append(f"  reports of {len(reports)} of {world_size} ranks: {folder}; the ranks end now")
    return lines


def rank_lines(report: HangReport) -> list[str]:
    """Describe where a rank is, for the terminal."""
    lines = []
    if report.frames and report.status in (STATUS[RUNNING], "died"):  # others only wait to be ended
        lines.append(f"  rank {report.rank} is at: {' <- '.join(map(short_frame, report.frames[:MAX_FRAMES]))}")
    if report.last is not None:
        how = "which is done" if report.last.done else "still in it"
        lines.append(f"  last collective of rank {report.rank}: {report.last} ({how})")
    return lines


def headline(verdict: Verdict, reports: Reports, *, world_size: int) -> str:
    """Say in one line which rank, where, in which step, for how long, and why.

    launch/processes/failures.py looks for the words "no progress".
    """
    blamed = set(verdict.ranks)
    culprits = [report for report in reports if report.rank in blamed]
    still_s = max((report.still_s for report in reports), default=0.0)
    if verdict.ranks and culprits:
        first = culprits[0]
        who = first.title if len(verdict.ranks) == 1 else f"{_named(verdict.ranks)} ({first.host})"
        where = f"in step {first.step:,} ({first.phase})"
    else:
        who = _named(verdict.ranks) if verdict.ranks else "no rank to name"
        where = f"in step {min((report.step for report in reports), default=0):,}"
    ended = any(report.status in ("died", "failed") for report in reports)
    fault = "fault" if ended else f"no progress for {still_s:.1f} s"
    return f"triaxial: error: {fault} of {world_size} rank{'s' * (world_size > 1)}: {who} {where}: {verdict.reason}"


def _lost(reports: Reports, *, culprits: set[int]) -> list[tuple[str, list[int]]]:
    """Group the ranks that lost their peers by their last collective; largest group first."""
    groups: dict[str, list[int]] = {}
    for report in reports:
        if report.status == STATUS[LOST] and report.rank not in culprits:
            groups.setdefault(str(report.last or report.phase), []).append(report.rank)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _waiting(reports: Reports, *, culprits: set[int]) -> list[tuple[str, list[int]]]:
    """Group the other running ranks by what they wait in; largest group first."""
    groups: dict[str, list[int]] = {}
    for report in reports:
        if report.rank in culprits or report.status != STATUS[RUNNING]:
            continue
        if report.pending is not None:
            words = str(report.pending)
        else:
            words = short_frame(report.frames[0]) if report.frames else report.phase
        groups.setdefault(words, []).append(report.rank)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _majority(reports: Reports, key: Callable[[HangReport], str]) -> set[int]:
    """Return the ranks that share the most common key, if they are more than half."""
    (most, count), *_ = Counter(map(key, reports)).most_common()
    return {report.rank for report in reports if key(report) == most} if 2 * count > len(reports) else set()


def _ranks(reports: Reports) -> tuple[int, ...]:
    return tuple(sorted(report.rank for report in reports))


def _named(ranks: Sequence[int]) -> str:
    """'rank 3', 'ranks 3, 5' or 'ranks 3, 5, 7, 8, 9, 10 and 40 more'."""
    more = f" and {len(ranks) - MAX_RANKS} more" if len(ranks) > MAX_RANKS else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:MAX_RANKS]))}{more}"

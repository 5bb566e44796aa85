"""Reports and settings of monitors that several tests of parallel/health build."""

from pathlib import Path

from parallel.health.collective_record import RecordedCollective
from parallel.health.reports import HangReport, Member, MonitorSettings


def collective(
    kind: str, number: int, *, group: str = "0", sizes: str = "[[8]] Float", done: bool = True
) -> RecordedCollective:
    return RecordedCollective(
        group=group, about=f"group{group}", kind=kind, number=number, sizes=sizes, done=done, created_ns=1
    )


def report(rank: int, **more) -> HangReport:
    fields = {"host": f"node{rank}", "pid": 100 + rank, "step": 9, "phase": "training", "still_s": 10.0}
    return HangReport(rank=rank, **{**fields, **more})


def waiting(rank: int, kind: str = "all_reduce", number: int = 40, **more) -> HangReport:
    open_one = collective(kind, number, done=False)
    return report(rank, **{"pending": open_one, "last": open_one, "counts": {"0": number}, **more})


def settings(folder: Path, rank: int, *, error_file: str = "", world_size: int = 4) -> MonitorSettings:
    return MonitorSettings(
        rank=rank,
        world_size=world_size,
        members={rank: Member(f"node{rank}", "machine", 100 + rank, "1")},
        hosts=tuple((i, f"node{i}") for i in range(world_size)),
        incarnation="abc",
        hangs=str(folder),
        main_thread=0,
        recorder="",
        error_file=error_file,
        launcher_pid=1,
        launcher_started_at="1",
        hang_timeout_s=9.0,
        beat_file=0,
        stacks_file=0,
    )

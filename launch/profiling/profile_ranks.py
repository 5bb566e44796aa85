"""Measure a machine's profile with real ranks: `triaxial doctor --measure`."""

import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, HashStore

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.temporary import temporary_folder
from gpt.telemetry.screen import human_duration
from launch.processes.local_ranks import RankFailed, fork_server, run_ranks
from launch.processes.rank_process import keep_freed_memory
from launch.processes.sealing import seal_object_collectives
from parallel.agreement import wait_for_all
from parallel.layout.gloo_groups import use_one_gloo_worker
from parallel.planner.machine.profile import ROWS, EngineSample, RanksTables
from parallel.planner.measuring.sections import Measured, measure_alone, measure_group

PRELOAD = ("launch.profiling.profile_ranks",)  # imports torch and everything that a rank needs
TIMEOUT_S = 600
POLL_S = 0.005


@dataclass(frozen=True)
class PartsDone:
    """How many parts of a profile there are and were done before, and when the first began (seconds since 1970)."""

    done: int
    parts: int
    started_at: float

    def after(self, more: int) -> "PartsDone":
        return dataclasses.replace(self, done=self.done + more)

    def text(self) -> str:
        """The words for the end of a line: the part that has ended, and the time left at this speed."""
        elapsed_s = time.time() - self.started_at
        left_s = elapsed_s / self.done * (self.parts - self.done)
        left = f", about {human_duration(left_s)} left" if self.done < self.parts else ""
        return f"part {self.done} of {self.parts}{left}"


def parts_of(ranks: int, precisions: Sequence[str], *, again: bool) -> tuple[int, int]:
    """The parts of a profile that ranks measure alone, and those that they measure as a group.

    `again`: a second turn, which measures the steps alone.
    """
    alone, group = (1, 0) if again else (4, 1)
    return alone * len(precisions), (group + len(precisions)) * (ranks > 1)


def measure_ranks(
    ranks: int, precisions: Sequence[str], *, cores: int, parts: PartsDone, again: bool = False
) -> RanksTables:
    """Everything that this machine does with `ranks` processes at once. Progress goes to the error stream.

    `parts`: those before these ranks. `again`: measure only the steps, in new processes.

    ConfigError: a rank failed; the message ends with its last lines.
    """
    context = fork_server(PRELOAD)
    with temporary_folder() as temporary:
        folder = temporary.path
        task = {"ranks": ranks, "precisions": list(precisions), "cores": cores, "again": again}
        task["parts"] = dataclasses.asdict(parts)
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        jobs: list[tuple[str, Callable[..., None]]] = [("alone", alone_rank)]
        jobs += [("group", group_rank)] * (ranks > 1)
        for name, function in jobs:
            try:
                run_ranks(context, function, [str(folder)], nproc=ranks, logs=folder / f"{name}-logs")
            except RankFailed as error:
                raise ConfigError(f"--measure with {ranks} ranks failed: {error}") from None
        found = [[_read(folder / f"{name}{rank}.json") for rank in range(ranks)] for name, _ in jobs]
    rows: dict[str, tuple[Any, ...]] = {}
    for each in found:
        for section in each[0]["rows"]:
            own = zip(*(rank["rows"][section] for rank in each), strict=True)
            rows[section] = (*rows.get(section, ()), *(_mean(ROWS[section], same) for same in own))
    everyone = [rank for each in found for rank in each]
    return RanksTables(
        ranks,
        everyone[0]["threads"],
        statistics.median([spread for rank in everyone for spread in rank["spreads"]]),
        max(rank["waiting"] for rank in everyone),
        **rows,
    )


def joined(first: RanksTables, second: RanksTables) -> RanksTables:
    """The tables of the first turn, and the mean of both turns' steps."""
    both = zip(first.samples, second.samples, strict=True)
    samples = [_mean(EngineSample, [dataclasses.asdict(each) for each in pair]) for pair in both]
    return dataclasses.replace(
        first,
        spread=statistics.fmean((first.spread, second.spread)),
        waiting=max(first.waiting, second.waiting),
        samples=tuple(samples),
    )


def alone_rank(rank: int, folder: str) -> None:
    """One of several processes that measure at once, each in a process group of its own."""
    task = _read(Path(folder, "task.json"))
    device = _start(rank)
    dist.init_process_group(_backend(device), store=HashStore(), rank=0, world_size=1)
    store, meetings = FileStore(str(Path(folder, "meetings")), task["ranks"]), iter(range(1 << 20))

    def meet() -> None:
        key, ends_at = f"meeting{next(meetings)}", time.monotonic() + TIMEOUT_S
        store.add(key, 1)
        while store.add(key, 0) < task["ranks"] and time.monotonic() < ends_at:
            time.sleep(POLL_S)

    threads = torch.get_num_threads()
    processor = device.type == "cpu" and threads == 1 and task["ranks"] <= task["cores"]
    report = _reporter(rank, task, threads)
    found = measure_alone(
        device, task["precisions"], kernels=not task["again"], processor=processor, meet=meet, report=report
    )
    _write(Path(folder, f"alone{rank}.json"), found, threads)
    dist.destroy_process_group()


def group_rank(rank: int, folder: str) -> None:
    """A rank of the group that measures messages and layouts."""
    task = _read(Path(folder, "task.json"))
    device = _start(rank)
    store = FileStore(str(Path(folder, "store")), task["ranks"])
    dist.init_process_group(
        _backend(device), store=store, rank=rank, world_size=task["ranks"], timeout=timedelta(seconds=TIMEOUT_S)
    )
    threads = torch.get_num_threads()
    report = _reporter(rank, task, threads, before=parts_of(task["ranks"], task["precisions"], again=task["again"])[0])
    found = measure_group(device, task["precisions"], ranks=task["ranks"], messages=not task["again"], report=report)
    _write(Path(folder, f"group{rank}.json"), found, threads)
    wait_for_all()
    dist.destroy_process_group()


def _start(rank: int) -> torch.device:
    seal_object_collectives()
    use_one_gloo_worker()
    if not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def _reporter(rank: int, task: dict[str, Any], threads: int, *, before: int = 0) -> Callable[[str], None]:
    ranks, parts = task["ranks"], PartsDone(**task["parts"]).after(before)
    ended = itertools.count(1)
    words = f"{ranks} rank{'s' if ranks > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"

    def report(text: str) -> None:
        if rank == 0:
            print(f"{words}: {text}; {parts.after(next(ended)).text()}", file=sys.stderr, flush=True)

    return report


def _write(path: Path, found: Measured, threads: int) -> None:
    rows = {name: [dataclasses.asdict(row) for row in section] for name, section in found.rows.items()}
    table = {"rows": rows, "spreads": found.spreads, "waiting": found.waiting, "threads": threads}
    path.write_text(json.dumps(table), encoding="utf-8")


def _read(path: Path) -> Any:
    return decode_json(path.read_text(encoding="utf-8"))


def _mean(kind: Any, same: Sequence[dict[str, Any]]) -> Any:
    """One row of the ranks' rows: the mean of their seconds; everything else is equal."""
    names = [each.name for each in dataclasses.fields(kind)]
    values = {name: [row[name] for row in same] for name in names}
    return kind(
        **{
            name: statistics.fmean(found)
            if isinstance(found[0], float)
            else tuple(found[0])
            if isinstance(found[0], list)
            else found[0]
            for name, found in values.items()
        }
    )

"""What the engine of `triaxial prepare` costs a task, beside a bare process pool that keeps no book; and how it grows.

    python -m benchmarks.prepare_tasks [--tasks 1000] [--rounds 5] [--scale 10000 100000] [--json FILE]

A task writes two small files, which are synced and renamed. `engine` does so with keys, manifest and digests, `pool`
is concurrent.futures.ProcessPoolExecutor with the same function; both with two processes, in turns. `scale` runs many
tasks in this process and without fsync, looks at them again when all are done, and has ten tasks depend on all outputs.
"""

import argparse
import io
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.side_by_side import alternate, check_writable, processor, report_result, rounded, serve, speed_ratios
from data_prep.execution import tasks as stages
from data_prep.execution.progress import ProgressBars
from data_prep.execution.tasks import Paths, Stage, Task, TaskResult
from data_prep.execution.workers import LocalWorkers
from data_prep.execution.workspace import Workspace
from gpt.errors import ConfigError
from gpt.files.atomic import sync_file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000, help="of each contender in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, nargs="*", default=[10_000, 100_000], help="numbers of tasks of one stage")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(lambda: contender(args.serve[0], Path(args.serve[1]), args.tasks))
        return 0
    return report_result(lambda: measure(args), args.json)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both contenders in turns, then the growth."""
    if args.json is not None:
        check_writable(args.json)
    if args.tasks < 1 or args.rounds < 1:
        raise ConfigError(f"--tasks {args.tasks} and --rounds {args.rounds} must be at least 1")
    folder = Path(tempfile.mkdtemp(prefix="prepare-tasks-"))
    try:
        command = [sys.executable, "-m", "benchmarks.prepare_tasks", "--tasks", str(args.tasks), "--serve"]
        commands = {name: [*command, name, str(folder / name)] for name in ("engine", "pool")}
        rounds = alternate(commands, rounds=args.rounds, threads=1, report=lambda line: print(line, flush=True))
        spans = {name: [one[name]["elapsed_s"] for one in rounds] for name in commands}
        scale = [grow(folder / str(n), n) for n in args.scale]
    finally:
        shutil.rmtree(folder)
    per_task_ms = {name: statistics.median(times) / args.tasks * 1e3 for name, times in spans.items()}
    result: dict[str, Any] = rounded(
        {
            "processor": processor(),
            "tasks": args.tasks,
            "ms_a_task": per_task_ms,
            "engine_cost_ms_a_task": per_task_ms["engine"] - per_task_ms["pool"],
            "speed_ratio": speed_ratios(spans, "engine")["pool"],
            "scale": scale,
        }
    )
    return result


def contender(name: str, folder: Path, n_tasks: int) -> Callable[[], dict[str, Any]]:
    """A block: all tasks, in a folder of their own."""
    sources = write_sources(folder / "in", n_tasks)
    number = 0

    def block() -> dict[str, Any]:
        nonlocal number
        number += 1
        work = folder / str(number)
        if name == "engine":
            run_stage(work, sources, LocalWorkers)
        else:
            (work / "copy").mkdir(parents=True)
            with ProcessPoolExecutor(2) as pool:
                list(pool.map(bare_task, [(path, work / "copy" / path.name) for path in sources]))
        return {}

    return block


def copy(config: None, inputs: Paths, outputs: Paths) -> TaskResult:
    """Stage function: two small files of one."""
    for output in outputs:
        output.write_bytes(inputs[0].read_bytes())
    return TaskResult()


def join(config: int, inputs: Paths, outputs: Paths) -> TaskResult:
    """Stage function that depends on all and does nothing with them."""
    outputs[0].write_bytes(b"")
    return TaskResult()


def bare_task(job: tuple[Path, Path]) -> None:
    """The same work without any book-keeping."""
    source, target = job
    temporary = tuple(target.with_name(f".{target.name}.{ending}") for ending in ("a", "b"))
    copy(None, (source,), temporary)
    for path in temporary:
        with open(path, "rb+") as file:
            sync_file(file)
        os.replace(path, path.with_name(path.name[1:]))


COPY = Stage("copy", copy)
JOIN = Stage("join", join)


class InThisProcess:
    """An executor without processes."""

    def __init__(self, n_workers: int | None) -> None:
        pass

    def run(
        self, function: Callable[[Any], Any], jobs: Sequence[Any], *, name: Callable[[Any], str]
    ) -> Iterator[tuple[int, Any]]:
        """Each job in turn."""
        yield from ((index, function(job)) for index, job in enumerate(jobs))

    def longest(self) -> None:
        """None: whoever asks is not the one who works."""

    def close(self) -> None:
        """Nothing to end."""


def run_stage(work: Path, sources: list[Path], executor: Any, *, joins: int = 0) -> float:
    """Run the copies, and the joins of all of them; seconds until the workspace was open."""
    started = time.perf_counter()
    quiet = ProgressBars(Console(file=io.StringIO()))
    with Workspace(work, n_workers=2, progress=quiet, executor=executor) as workspace:
        opened_s = time.perf_counter() - started
        outputs = [
            tuple(workspace.folder / "copy" / f"{path.name}.{ending}" for ending in ("a", "b")) for path in sources
        ]
        workspace.run(COPY, [Task(None, (path,), both) for path, both in zip(sources, outputs, strict=True)])
        if joins:
            everything = tuple(path for both in outputs for path in both)
            tasks = [Task(number, everything, (workspace.folder / "join" / str(number),)) for number in range(joins)]
            workspace.run(JOIN, tasks)
    return opened_s


def grow(folder: Path, n_tasks: int) -> dict[str, Any]:
    """One stage of so many tasks, first run and second, in this process and without fsync."""
    sources = write_sources(folder / "in", n_tasks)
    sync, stages.sync_file = stages.sync_file, lambda file: file.flush()
    try:
        spans = []
        for joins in (0, 0, 10):
            started = time.perf_counter()
            opened_s = run_stage(folder / "work", sources, InThisProcess, joins=joins)
            spans.append(time.perf_counter() - started)
    finally:
        stages.sync_file = sync
    result = {
        "tasks": n_tasks,
        "first_run_ms_a_task": spans[0] / n_tasks * 1e3,
        "second_run_s": spans[1],
        "of_it_reading_the_manifest_s": opened_s,
        "ten_tasks_that_read_all_outputs_s": spans[2] - spans[1],
        "manifest_bytes": (folder / "work/manifest.jsonl").stat().st_size,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(f"{n_tasks:,} tasks: {rounded(result)}", flush=True)
    return result


def write_sources(folder: Path, n: int) -> list[Path]:
    """Small files, each unlike the others."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number:06d}" for number in range(n)]
    for path in paths:
        path.write_bytes(path.name.encode() * 20)
    return paths


if __name__ == "__main__":
    sys.exit(main())

"""`triaxial train --dry-run`: tables of the memory and the traffic of a layout's ranks, without running them."""

import argparse
import dataclasses
import os
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.telemetry.screen import human_count
from gpt.training.objective import Objective
from launch.config.objectives import program_of
from launch.config.run_config import RunConfig
from launch.processes.failures import describe_exit
from launch.processes.local_ranks import end_with_launcher, fork_server, signals_unwind
from launch.processes.terminal import WorkProgress, work_progress
from launch.reports.written import json_destination
from launch.training.build import build_objective
from parallel.engines.settings import EngineSettings
from parallel.layout.config import ParallelConfig
from parallel.layout.layout import Layout
from parallel.planner.dry_run import RankReport, extrapolated_report, measure_steps, micro_batches_to_run

COLUMNS = ("rank", "pipeline", "layers", "parameters", "weights", "gradients", "optimizer", "activations", "peak")


def run(args: argparse.Namespace, config: RunConfig, settings: EngineSettings) -> int:
    layout, engine, measured = settings.layout, settings.parallel.engine, ParallelConfig().engine
    if engine != measured:
        raise ConfigError(
            f"--dry-run with parallel.engine = '{engine}' is invalid: it measures one engine only. Use "
            f"--parallel.engine {measured}"
        )
    with json_destination(args.json) as emit:
        like_it: dict[int, tuple[int, ...]] = {args.rank: ()} if args.rank is not None else ranks_to_show(settings)
        ranks, steps = f"{layout.world_size:,} ranks", f"{layout.micro_batches} micro-batches a step"
        print(f"dry run of {layout} = {ranks}, {steps}", flush=True)
        reports = measure(settings, build_objective(config), list(like_it), data=config.data)
        more = program_of(config.objective).dry_run_notes(config, layout)
        tables = [*holdings_table(reports), "", *traffic_table(reports), ""]
        for line in [*tables, *notes(config, reports, like_it), *more]:
            print(line)
        emit(as_json(layout, reports))
    return 0


def measure(settings: EngineSettings, objective: Objective, ranks: list[int], *, data: DataConfig) -> list[RankReport]:
    """The reports of some ranks. Each step that is run has a process of its own. Shows its progress."""
    work = partial(measure_steps, settings, data=data, objective=objective)
    runs, stages = micro_batches_to_run(settings), settings.layout.stages // settings.layout.pipeline
    jobs = [(rank, n) for n in sorted(runs, reverse=True) for rank in ranks]
    with signals_unwind(), work_progress() as progress:
        words = "a rank" if len(ranks) == 1 else f"{len(ranks)} kinds of ranks"
        progress.start(f"measuring {words}", total=stages * sum(n for _, n in jobs))
        if len(jobs) == 1:
            found = {ranks[0]: work(rank=ranks[0], runs=runs, advance=progress.advance)}
        else:
            found = _measured(jobs, work, progress)
    return [extrapolated_report(found[rank], settings.layout.micro_batches) for rank in ranks]


def _measured(
    jobs: list[tuple[int, int]], work: Callable[..., list[RankReport]], progress: WorkProgress
) -> dict[int, list[RankReport]]:
    """The reports by rank. `jobs`: a rank and a number of micro-batches each, as many at a time as there are cores."""
    context = fork_server(["parallel.planner.dry_run", "launch.planning.dry_run"])  # torch is imported once
    found: dict[int, list[RankReport]] = {rank: [] for rank, _ in jobs}
    waiting, running = list(jobs), dict[Connection, tuple[int, BaseProcess]]()
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_send_report, args=(theirs, work, *waiting[0]), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (waiting.pop(0)[0], process)
            for answered in wait(list(running)):
                assert isinstance(answered, Connection)
                rank, measuring = running[answered]
                answer = _received(answered, measuring, rank)
                if answer is None:  # a pass through a stage is over
                    progress.advance()
                    continue
                del running[answered]
                answered.close()
                found[rank].append(answer)
    finally:
        for _, measuring in running.values():
            measuring.kill()
    return found


def _send_report(connection: Connection, work: Callable[..., list[RankReport]], rank: int, micro_batches: int) -> None:
    """The body of a process that measures a rank: send None after each pass, then the report or the user's mistake."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the command handles it
    end_with_launcher()
    try:
        (report,) = work(rank=rank, runs=[micro_batches], advance=lambda: connection.send(None))
        connection.send(report)
    except ConfigError as error:
        connection.send(error)


def _received(connection: Connection, process: BaseProcess, rank: int) -> RankReport | None:
    """The report of a rank, or None for one more pass through its stages. ConfigError: what the process found wrong."""
    try:
        answer = connection.recv()
    except EOFError:
        process.join()
        how = describe_exit(process.exitcode or 0)
        raise ConfigError(
            f"--dry-run: the process that measured rank {rank} ended early ({how}). Use --rank {rank} to measure it "
            f"alone"
        ) from None
    if answer is None:
        return None
    process.join()
    if isinstance(answer, ConfigError):
        raise answer
    assert isinstance(answer, RankReport)
    return answer


def ranks_to_show(settings: EngineSettings) -> dict[int, tuple[int, ...]]:
    """The first rank of each kind of pipeline rank, and the other pipeline ranks of its kind.

    Pipeline ranks are of one kind if they hold the same number of blocks and the same ends of the model. Ranks that
    differ only in their tensor or data index do the same work.
    """
    layout = settings.layout
    kinds: dict[tuple[tuple[int, bool, bool], ...], list[int]] = {}
    for pipeline_rank in range(layout.pipeline):
        kind = tuple((layout.split[i], i == 0, i == layout.stages - 1) for i in layout.stages_of(pipeline_rank))
        kinds.setdefault(kind, []).append(pipeline_rank)
    ranks_each = layout.tensor * layout.data
    return {first * ranks_each: tuple(others) for first, *others in kinds.values()}


def holdings_table(reports: list[RankReport]) -> list[str]:
    """One line per rank: its position in the pipeline, and the bytes that it holds."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for r in reports:
        sizes = (r.parameter_bytes, r.gradient_bytes, r.optimizer_bytes, r.peak_activation_bytes, r.peak_bytes)
        position = (f"{r.rank}", f"{r.pipeline_rank}", _span(r.layers), human_count(r.parameters))
        rows.append((*position, *map(human_bytes, sizes)))
    return _aligned(rows)


def traffic_table(reports: list[RankReport]) -> list[str]:
    """The traffic of each rank in one optimizer step, one line per kind of collective."""
    rows: list[tuple[str, ...]] = [("rank", "axis", "collective", "among", "times a step", "bytes a step")]
    for r in reports:
        for key, traffic in r.traffic.items():
            kind = (f"{r.rank}", key.axis, key.kind, f"{key.ranks}")
            rows.append((*kind, f"{traffic.count:,}", human_bytes(traffic.bytes)))
    return _aligned(rows)


def notes(config: RunConfig, reports: list[RankReport], like_it: dict[int, tuple[int, ...]]) -> list[str]:
    """Lines that explain the figures."""
    lines = []
    for r in reports:
        if like_it[r.rank]:
            lines.append(
                f"pipeline rank {_span(like_it[r.rank])} is like {r.pipeline_rank}, but may hold activations of fewer "
                f"micro-batches; see any rank with --rank"
            )
    lines.append(
        "weights, gradients, optimizer: the shards that this rank keeps. activations: the maximum held at once,"
    )
    lines.append(
        "without weights and gradients but with gathered ones. peak: of everything, without allocator overhead."
    )
    lines.append("bytes a step: of whole tensors, as gathered or before reduction (docs/guides/training/dry_run.md).")
    if len(reports[0].micro_batches_run) > 1:
        few, more = reports[0].micro_batches_run
        lines.append(
            f"measured with {few} and {more} micro-batches and extrapolated linearly to {reports[0].micro_batches}: "
            f"each further one adds the same"
        )
    if config.parallel.compile:
        lines.append("measured without parallel.compile, which holds fewer activations and sends the same.")
    if config.parallel.offload:
        lines.append("with parallel.offload, weights, gradients and optimizer are in host memory: peak includes both.")
    return lines


def as_json(layout: Layout, reports: list[RankReport]) -> dict[str, Any]:
    """The figures with exact numbers of bytes."""
    ranks = []
    for report in reports:
        traffic = [{**dataclasses.asdict(key), **dataclasses.asdict(value)} for key, value in report.traffic.items()]
        ranks.append({**dataclasses.asdict(dataclasses.replace(report, traffic={})), "traffic": traffic})
    return {"layout": dataclasses.asdict(layout), "world_size": layout.world_size, "ranks": ranks}


def human_bytes(n: int) -> str:
    """Three digits and a binary unit: 12 B, 3.40 MiB, 1.25 GiB."""
    if n < 1024:
        return f"{n} B"
    size = float(n)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1000:
            return f"{size:#.3g}".rstrip(".") + f" {unit}"
    return f"{size / 1024:,.2f} TiB"


def _span(numbers: tuple[int, ...]) -> str:
    """Consecutive numbers as ranges: "0-1,6-7"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans) or "-"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]

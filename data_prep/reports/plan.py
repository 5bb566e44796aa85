"""Print a plan: what is done (`--status`) and what a run would do (`--dry-run`)."""

import json
import shlex
import shutil
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.corpus.corpus import CORPUS_FILE
from data_prep.execution.files import existing_parent
from data_prep.execution.progress import span
from data_prep.execution.shares import ObservedRun
from data_prep.plan import PlanOfRun
from data_prep.recipe import PrepareConfig
from data_prep.reports.table import in_bytes

_MORE = "  (and more, which depend on its findings)"


def show_status(plan: PlanOfRun, config: PrepareConfig, console: Console) -> None:
    """Print stages with their tasks and documents, the last finished task, and the runs in the folder."""
    table = _table("stage", "tasks", "done", "stale", "open", "docs in", "docs out")
    for stage in plan.stages:
        n_open = stage.n_to_do - stage.n_stale
        numbers = [f"{n:,}" for n in (stage.n_tasks, stage.n_done, stage.n_stale, n_open)]
        ends = (stage.counts[0].documents_in, stage.counts[-1].documents_out) if stage.counts else ()
        table.add_row(stage.name, *numbers, *(f"{n:,}" for n in ends))
        if stage.more_follow:
            table.add_row(_MORE)
    console.print(table)
    lines = []
    corpus = config.output.corpus_folder / CORPUS_FILE
    is_done = plan.is_complete and not any(stage.n_to_do for stage in plan.stages)
    if corpus.exists():
        lines.append(f"corpus: {corpus}{'' if is_done else ', of an earlier run'}")
    else:
        lines.append("corpus: not written yet")
    if plan.last_entry is not None:
        entry = plan.last_entry
        made = Path(entry["outputs"][0]["path"]).name
        lines.append(
            f"last finished task: {entry['stage']}, {made}, at {entry['finished_at']}, {entry['elapsed_s']:.1f} s"
        )
    lines += [_who(seen) for seen in plan.runs] or ["runs: none so far"]
    _print(lines, console)


def show_dry_run(plan: PlanOfRun, config: PrepareConfig, console: Console, *, n_workers: int) -> None:
    """Print stages in order with the tasks to do, their size and time, and what is not known about them."""
    read = f", {plan.unread_files:,} of them to be read for their digest" if plan.unread_files else ""
    console.print(
        f"input: {plan.source_files:,} files, {in_bytes(plan.source_bytes)}{read}", highlight=False, soft_wrap=True
    )
    measured = any(stage.n_done or stage.work_s is not None for stage in plan.stages)
    table = _table("stage", "tasks", "done", "to do", "reads", *(("writes", "work") if measured else ()))
    for stage in plan.stages:
        numbers = [f"{n:,}" for n in (stage.n_tasks, stage.n_done, stage.n_to_do)]
        unknown = "?" if measured else ""
        sizes = [unknown if n is None else in_bytes(round(n)) for n in (stage.input_bytes, stage.output_bytes)]
        work = unknown if stage.work_s is None else span(stage.work_s)
        table.add_row(stage.name, *numbers, *((*sizes, work) if measured else sizes[:1]))
        if stage.more_follow:
            table.add_row(_MORE)
    console.print(table)
    lines = _without_estimate(plan, config) if measured else _first_of_all(plan, config)
    writes = round(sum(stage.output_bytes or 0.0 for stage in plan.stages))
    folder = existing_parent(config.output.work_folder)
    free = f"free in {folder}: {in_bytes(shutil.disk_usage(folder).free)}"
    workers = "1 worker" if n_workers == 1 else f"{n_workers} workers"
    elapsed_s = plan.elapsed_s(n_workers)
    if not any(stage.n_to_do for stage in plan.stages):
        lines.append("nothing to do")
    else:
        least = "about" if plan.is_complete and elapsed_s is not None else "at least"
        size = f"{least} {in_bytes(writes)}" if writes else "not known"
        lines.append(f"to write: {size}; {free}")
        if elapsed_s is not None:
            lines.append(f"time with {workers}, estimated from finished tasks: {least} {span(elapsed_s)}")
    _print(lines, console)


def _without_estimate(plan: PlanOfRun, config: PrepareConfig) -> list[str]:
    """Name the stages whose size and time are unknown, if there are any."""
    unknown = [stage.name for stage in plan.stages if stage.n_to_do and stage.work_s is None]
    if not unknown:
        return []
    return [
        f"not known: size and time of {', '.join(unknown)}; they, or stages before them, have no finished task to "
        "estimate from. Prepare a few of the files with the same output.work and another output.folder, then retry"
    ]


def _first_of_all(plan: PlanOfRun, config: PrepareConfig) -> list[str]:
    """Say how to get estimates before anything was prepared: with one file, whose work counts for the whole run."""
    work = config.output.work_folder
    name = str(plan.typical_source or config.input.paths[0])
    words = ["--input.paths", json.dumps([name], ensure_ascii=False), "--output.work", str(work)]
    words += ["--output.folder", str(work / "try")]
    return [
        "sizes and times are estimated from finished tasks, and there are none yet. Prepare one file, whose work "
        "counts for the whole run, then ask again:",
        f"    triaxial prepare RECIPE {shlex.join(words)}",
    ]


def _who(seen: ObservedRun) -> str:
    status = seen.status
    name = "run" if status.share is None else f"share {status.share}"
    where = f"{name}: {status.where}, since {status.started_at}"
    in_stage = f" in {status.stage}" if status.stage else ""
    if seen.is_running:
        return f"{where}: {status.state}{in_stage}, last sign of life {span(seen.quiet_s)} ago"
    if status.state == "done":
        return f"{where}: finished at {_clock(seen)}"
    if status.state == "failed":
        return f"{where}: stopped{in_stage}: {status.message}"
    return f"{where}: died{in_stage}, or its machine did; last sign of life {span(seen.quiet_s)} ago"


def _clock(seen: ObservedRun) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seen.quiet_s))


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _print(lines: list[str], console: Console) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

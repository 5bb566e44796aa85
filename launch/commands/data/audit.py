"""`triaxial data audit`: name the corpus, file and documents that each sequence of a past or future step is read from.

The order of the data is computed (gpt/data/order.py), so every step costs the same. The command needs only the run's
configuration, its skipped ranges, and the index of the token files. It starts no process group.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gpt.errors import ConfigError
from launch.processes.terminal import printable, table_console, work_progress
from launch.reports.written import NO_FILE, STANDARD_OUTPUT, Emit, json_destination
from launch.runs.audited import (
    AuditedRun,
    SequenceSource,
    open_audited_run,
    positions_of_order,
    sequences_of_step,
    with_sources,
)


def run(args: argparse.Namespace) -> int:
    with json_destination(args.json, indent=None) as emit:
        audited = open_audited_run(args.run, args.overrides, rank=args.rank, text=args.text)
        console = table_console()
        tables = None if args.json in (STANDARD_OUTPUT, NO_FILE) else console
        for note in audited.notes:
            console.print(note, highlight=False)
        for heading, sources in _asked_for(args, audited):
            work = Path(args.source) if args.source else None
            with work_progress() as progress:  # its bar has gone when the table comes
                progress.start("reading the work folder" if args.source is not None else heading)
                found = list(
                    sources
                    if args.source is None
                    else with_sources(sources, work, lambda done, total: progress.update(done, total=total))
                )
            show(heading, found, tables, emit, text=args.text, source=args.source is not None)
        if args.positions is None:
            first, last = _steps(args)
            positions = [audited.skipped.position(n) for n in (audited.samples(first)[0], audited.samples(last)[-1])]
            console.print(f"to skip these: data.skip = [[{positions[0]}, {positions[1] + 1}]]", highlight=False)
    return 0


def _asked_for(args: argparse.Namespace, audited: AuditedRun) -> Iterator[tuple[str, Iterator[SequenceSource]]]:
    """The tables that the options ask for: their titles and sequences."""
    if args.positions is not None:
        first, last = _span("--positions", args.positions, minimum=0)
        yield "positions " + args.positions, positions_of_order(audited, range(first, last + 1))
        return
    first, last = _steps(args)
    train, steps = audited.config.train, audited.config.train.steps(audited.config.batch.ramp)
    if last > steps:
        total = f"train.total_tokens = {train.total_tokens:,} are {steps:,} steps"
        raise ConfigError(f"step {last:,} is after the end of the run: {total}")
    for step in range(first, last + 1):
        yield title(audited, step), sequences_of_step(audited, step, rank=_rank(args.rank))


def title(audited: AuditedRun, step: int) -> str:
    """One line about the data of a step."""
    samples = audited.samples(step)
    positions = audited.skipped.positions(samples.start, len(samples))
    when = ""
    if audited.saved_step is None or step > audited.saved_step:
        newest = "there is none yet" if audited.saved_step is None else f"step {audited.saved_step:,}"
        when = f"; after the newest checkpoint ({newest}), so this is the plan"
    return (
        f"step {step:,}: {len(samples)} sequences of {audited.config.data.seq_len:,} tokens, positions "
        f"{positions[0]:,} to {positions[-1]:,}{when}"
    )


def show(
    heading: str,
    sources: Iterable[SequenceSource],
    console: Console | None,
    emit: Emit,
    *,
    text: bool = False,
    source: bool = False,
) -> None:
    """Emit each sequence, and print them as a table if there is a console."""
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("sequence", "rank", "position", "corpus", "epoch", "window", "file", "document", "offset", "tokens"):
        is_name = header in ("corpus", "file")
        table.add_column(header, justify="left" if is_name else "right", no_wrap=not is_name)
    if text:
        table.add_column("text")
    if source:
        table.add_column("from", overflow="fold")
    for sequence in sources:
        emit(asdict(sequence))
        if console is not None:
            table_rows(table, sequence, text=text, source=source)
    if console is not None:
        console.print(table)


def table_rows(table: Table, sequence: SequenceSource, *, text: bool, source: bool) -> None:
    """A row a document; those after the first leave out what is the same."""
    where = "skipped" if sequence.sample is None else str(sequence.sequence)
    rank = "" if sequence.data_rank is None else str(sequence.data_rank)
    own: list[Any] = [where, rank, sequence.position, sequence.corpus, sequence.epoch, sequence.window]
    for part in sequence.documents:
        row = [*own, Path(part.file).name, part.document, part.offset_tokens, part.n_tokens]
        row += [part.text or ""] if text else []
        row += [part.url or part.id or ""] if source else []
        table.add_row(*(printable(str(cell)) for cell in row))
        own = [""] * len(own)


def _steps(args: argparse.Namespace) -> tuple[int, int]:
    if args.steps is not None:
        return _span("--steps", args.steps, minimum=1)
    if not args.step.isdecimal() or int(args.step) < 1:
        raise ConfigError(f"--step {args.step} is invalid: must be a whole number of at least 1, as in metrics.jsonl")
    return int(args.step), int(args.step)


def _span(option: str, text: str, *, minimum: int) -> tuple[int, int]:
    """Both ends of A-B."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and minimum <= int(first) <= int(last)):
        raise ConfigError(f"{option} {text} is invalid: must be A-B, whole numbers with {minimum} <= A <= B")
    return int(first), int(last)


def _rank(text: str | None) -> int | None:
    return None if text is None else int(text.partition("/")[0])

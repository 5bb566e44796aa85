"""`triaxial report`: the results of a training run and where its time went, as tables, an HTML page or JSON.

It only reads the run directory, so it can run during training. It needs one process.
"""

import argparse
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.post_training.analysis.diagnosis import diagnose
from gpt.telemetry.goodput import NAMES, Account
from launch.dashboard.feed import run_directories
from launch.dashboard.page import page_file
from launch.dashboard.server import Dashboard
from launch.processes.terminal import printable, table_console, work_progress
from launch.reports.facts import (
    as_json,
    bytes_text,
    headline,
    news,
    start_up_medians,
    status,
    text_of,
    time_text,
    word_of,
)
from launch.reports.page import report_page
from launch.reports.policy_health import policy_metrics, policy_prefix
from launch.reports.written import Emit, add_json_option, check_destination, json_destination, write_page
from launch.runs.history import METRICS, RunHistory, read_history

LAST_EVENTS = 12  # shown on the terminal
BAR = 30  # characters of a full bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN", help="the run's directory (run.directory)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained HTML page with plots")
    add_json_option(parser, "the figures")
    parser.add_argument(
        "--serve", action="store_true", help="show one or several runs, live, on a page of a server on this machine"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="with --serve: the port (default: a free one)")
    parser.add_argument(
        "--scaling", action="store_true", help="validation loss against compute of several runs, with power laws"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="with --scaling: write the picture alone")
    parser.add_argument(
        "--corpus", metavar="NAME", help="with --scaling: the validation corpus, where the runs have several"
    )


def run(args: argparse.Namespace) -> int:
    for name in ("html", "svg"):
        check_destination(f"--{name}", getattr(args, name))
    with json_destination(args.json) as emit:
        if args.scaling:
            from launch.reports import scaling  # with torch, which nothing else here needs

            return scaling.run(args, emit)
        return report_run(args, emit)


def report_run(args: argparse.Namespace, emit: Emit) -> int:
    for name in ("svg", "corpus"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} {getattr(args, name)} is only for --scaling. Leave it out")
    if args.json is not None and (args.serve or len(args.run) > 1):
        raise ConfigError(f"--json {args.json} is for one run, or for --scaling. Leave it out")
    if args.serve:
        return serve(args)
    if args.port:
        raise ConfigError(f"--port {args.port} is only for --serve. Leave it out")
    return compare(args) if len(args.run) > 1 else show(args, emit)


def show(args: argparse.Namespace, emit: Emit) -> int:
    """The report of one run."""
    with work_progress() as progress:
        metrics = args.run[0] / METRICS
        progress.start("reading the run", total=metrics.stat().st_size if metrics.is_file() else None)
        history, now = read_history(args.run[0], advance=progress.advance), time.time()
    console = table_console()
    console.print(Text(f"{history.directory}: {printable(status(history, now=now))}"))
    for problem in history.problems:
        console.print(Text(f"note: {printable(problem)}"))
    console.print(figures_table(history))
    if policy_prefix(history.metrics) is not None:
        console.print(policy_text(history))
    if history.account is not None:
        console.print(time_table(history.account))
        parts = start_up_medians(history.account.processes)
        if parts:
            each = ", ".join(f"{name} {s:.2f} s" for name, s in parts.items())
            console.print(Text(f"start to first step, {sum(parts.values()):.2f} s: {each} (medians)"))
    if history.events:
        counts = Counter(word_of(event) for event in history.events)
        console.print(Text("events: " + ", ".join(f"{n:,} {printable(kind)}" for kind, n in counts.most_common())))
        console.print(events_table(history))
    if history.checkpoints:
        newest = history.checkpoints[-1]
        n = len(history.checkpoints)
        console.print(Text(f"checkpoints on disk: {n:,}, newest {newest.name} with {bytes_text(newest.size_bytes)}"))
    if args.html is not None:
        write_page("--html", args.html, report_page(history, now=now))
        console.print(Text(f"wrote {args.html}"))
    emit(as_json(history, now=now))
    return 0


def serve(args: argparse.Namespace) -> int:
    """Serve the page of the runs until Ctrl-C."""
    if not 0 <= args.port < 2**16:
        raise ConfigError(f"--port {args.port} is no port. Use one from 1024 to 65535, or leave it out")
    try:
        server = Dashboard(run_directories(args.run), port=args.port)
    except OSError as error:
        raise ConfigError(f"--port {args.port}: {error.strerror}. Use another port, or leave it out") from error
    with server:
        n = len(server.feeds)
        print(f"{n} run{'s' if n > 1 else ''}, on this machine only: {server.url} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def compare(args: argparse.Namespace) -> int:
    """Write one page about several runs."""
    if args.html is None:
        raise ConfigError(
            f"{len(args.run)} runs: a report is about one. Use --serve or --html FILE to compare them, or --scaling"
        )
    write_page("--html", args.html, page_file(run_directories(args.run)))
    print(f"wrote {args.html}")
    return 0


def figures_table(history: RunHistory) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for what, value, note in headline(history):
        table.add_row(Text(printable(what)), Text(value), Text(note, style="dim"))
    return table


def policy_text(history: RunHistory) -> Text:
    """The faults of a policy's training, each with its numbers and remedies."""
    findings = diagnose(policy_metrics(history.metrics))
    if not findings:
        return Text("policy: no known fault in its metrics")
    lines = Text("policy:")
    for finding in findings:
        lines.append(
            f"\n- {finding.symptom.name}, {finding.when}", style="bold" if finding.evidence.span.lasting else ""
        )
        lines.append(f": {finding.evidence.numbers}. {finding.symptom.advice}")
    return lines


def time_table(account: Account) -> Table:
    """The parts of the wall time, each with its share as a number and a bar."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("where the time went", "left"), ("seconds", "right"), ("share", "right"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    wall_s = account.wall_s or 1.0
    for name, s in account.by_name.items():
        if s > 0:
            table.add_row(NAMES[name], f"{s:,.2f}", f"{s / wall_s:.1%}", "█" * round(BAR * s / wall_s))
    table.add_section()
    table.add_row("wall time", f"{account.wall_s:,.2f}", "100%", "")
    return table


def events_table(history: RunHistory) -> Table:
    """The newest events other than successful saves."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("when", "left"), ("step", "right"), ("kind", "left"), ("what", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for event in news(history)[-LAST_EVENTS:]:
        step = "" if event.step is None else f"{event.step:,}"
        words = (time_text(event.time), step, printable(word_of(event)), printable(text_of(event)))
        table.add_row(*(Text(word) for word in words))
    return table

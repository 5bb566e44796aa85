"""`triaxial compare --votes`: count the votes, and print win rates and agreement."""

import argparse
from dataclasses import asdict

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.evaluation.intervals import interval_text
from launch.comparison.votes import read_key, read_votes
from launch.comparison.win_rates import VoteSummary, summarise
from launch.processes.terminal import printable, table_console
from launch.reports.written import Emit, json_destination


def count(args: argparse.Namespace) -> int:
    """Print win rates and agreement of the votes in files."""
    if len(args.run) != 1 or args.prompts is not None or args.output is not None:
        raise ConfigError("--votes is valid with one folder only: triaxial compare DIR --votes FILE...")
    with json_destination(args.json) as emit:
        votes, n_replaced = read_votes(args.votes, read_key(args.run[0]))
        if not votes:
            raise ConfigError(f"--votes {args.votes[0]} holds no vote. Answer questions, and save them with E.")
        report(summarise(votes), n_replaced, emit)
    return 0


def report(summary: VoteSummary, n_replaced: int, emit: Emit) -> None:
    console = table_console()
    each = ", ".join(f"{printable(name)} {n:,}" for name, n in sorted(summary.labellers.items()))
    console.print(Text(f"{summary.n_votes:,} votes: {each}"))
    if n_replaced:
        console.print(Text(f"note: {n_replaced:,} earlier votes by the same labeller on a question do not count"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = ("better", "than", "wins", "ties", "losses", "prompts", "win rate, 95% by prompt", "without ties, Wilson")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < 2 else "right", overflow="fold")
    for one in summary.win_rates:
        counts = (f"{n:,}" for n in (one.wins, one.ties, one.losses, one.n_prompts))
        names = (Text(printable(one.first)), Text(printable(one.second)))
        table.add_row(*names, *counts, interval_text(one.rate), interval_text(one.decided))
    console.print(table)
    for what, interval in (
        ("labellers agree, ties left out", summary.agreement),
        ("labellers agree, ties as a third answer", summary.agreement_with_ties),
        ("the first answer was chosen", summary.left_chosen),
        ("the longer answer was chosen", summary.longer_chosen),
    ):
        console.print(Text(f"{what}: {interval_text(interval)}"))
    emit(asdict(summary))

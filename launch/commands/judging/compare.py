"""`triaxial compare`: let people compare the answers of several runs, blind, and count their votes."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.evaluation.intervals import Interval
from gpt.files.atomic import replace_file
from gpt.inference.sampling import Sampling
from launch.comparison.answers import ComparedSettings, answers_of, check_answers, model_names
from launch.comparison.page import comparison_page
from launch.comparison.prompts import ComparedPrompt, read_conversations, read_texts_to_continue
from launch.comparison.questions import AnsweredPrompt, answered_prompts, digest, make_questions, prompt_record
from launch.comparison.votes import ANSWERS, read_key, read_votes
from launch.comparison.win_rates import VoteSummary, summarise
from launch.processes.terminal import printable, table_console
from launch.reports.written import Emit, add_json_option, json_destination
from launch.runs.saved_run import DTYPES, add_device_arguments, device_of

PAGE = "index.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="runs to compare, or files that `triaxial generate --output` wrote; with --votes: the comparison's folder",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='a JSON object with a "prompt" in every line, "-" reads stdin; with --chat: JSON lines or Parquet',
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="the prompts are conversations, which each run answers in its own chat format",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="the folder for the page and the answers")
    parser.add_argument(
        "--votes", type=Path, nargs="+", metavar="FILE", help="count the votes in these files, which the page saved"
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="the longest answer (default: 100)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely token (default: 0.8)")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample from the likely tokens of total probability P")
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="stop before any of these texts")
    parser.add_argument("--seed", type=int, default=0, help="of the answers and of the page's order (default: 0)")
    add_json_option(parser, "the figures of --votes")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.votes is not None:
        return count(args)
    check_arguments(args)
    names = model_names(args.run)
    prompts = prompts_of(args)
    settings = ComparedSettings(
        sampling=Sampling(args.temperature, None, args.top_p, 1.0),
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        stops=tuple(args.stop),
        device=device_of(args.device),
        dtype=DTYPES[args.dtype],
    )
    for path in args.run:
        check_answers(path, prompts, settings)  # a mistake must come before the first model answers
    answers = {}
    for name, path in zip(names, args.run, strict=True):
        print(f"{printable(name)}: {len(prompts):,} prompts", flush=True)
        answers[name] = answers_of(path, prompts, settings)
    write(args, answered_prompts([prompt.shown for prompt in prompts], answers, seed=args.seed))
    return 0


def prompts_of(args: argparse.Namespace) -> list[ComparedPrompt]:
    """Read the prompts; print how many records of a file of conversations cannot be used."""
    if not args.chat:
        return read_texts_to_continue(args.prompts)
    prompts, left_out = read_conversations(args.prompts)
    for reason, n in left_out.most_common():
        print(f"note: {n:,} records of {args.prompts} left out: {reason}")
    return prompts


def write(args: argparse.Namespace, prompts: list[AnsweredPrompt]) -> None:
    """Write the page and the key. ConfigError: there is no question to ask."""
    questions, n_equal = make_questions(prompts, seed=args.seed)
    if not questions:
        raise ConfigError(f"All {n_equal:,} pairs of answers are equal: there is nothing to compare. Use other runs.")
    args.output.mkdir(parents=True, exist_ok=True)
    key = "".join(json.dumps(prompt_record(one)) + "\n" for one in prompts)  # ASCII: a text may hold lone surrogates
    replace_file(args.output / ANSWERS, key)
    replace_file(args.output / PAGE, comparison_page(questions, comparison_id=digest(key, args.seed)))
    equal = f" ({n_equal:,} pairs of equal answers left out)" if n_equal else ""
    print(f"wrote {args.output / PAGE}: {len(questions):,} questions{equal}. Open it in a browser; no server is needed")
    print(f"then: triaxial compare {args.output} --votes votes-NAME.jsonl")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without a model."""
    if len(args.run) < 2:
        raise ConfigError(f"{len(args.run)} run: a comparison needs at least two. Give RUN_A RUN_B, or use --votes.")
    for name in ("prompts", "output"):
        if getattr(args, name) is None:
            raise ConfigError(f"--{name} is missing. Give --prompts FILE --output DIR, or use --votes.")
    if args.json is not None:
        raise ConfigError(f"--json {args.json} is only for --votes. Leave it out.")
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {args.max_new_tokens} is invalid: it must be at least 1.")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed} is invalid: it must be at least 0.")
    if "" in args.stop:
        raise ConfigError("--stop '' is invalid: an empty text matches everywhere. Give another text.")
    if args.output.exists() and not args.output.is_dir():
        raise ConfigError(f"--output {args.output} is invalid: it is a file. Give a folder.")


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


def interval_text(interval: Interval, *, percent: bool = True) -> str:
    """An estimate with its bounds, in percent or as a number."""
    if interval.estimate != interval.estimate:
        return "no data"

    def text(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.4g}"

    if interval.low != interval.low:
        return text(interval.estimate)
    return f"{text(interval.estimate)} ({text(interval.low)} to {text(interval.high)})"

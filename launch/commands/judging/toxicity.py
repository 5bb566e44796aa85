"""`triaxial toxicity`: continue prompts several times, score the texts, and report how toxic they get."""

import argparse
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.inference.sampling import Sampling
from gpt.post_training.analysis.toxicity import Toxicity
from launch.commands.judging.compare import interval_text
from launch.comparison.answers import ComparedSettings, answers_of
from launch.evaluation.toxicity import (
    by_group,
    continuation_lines,
    read_toxicity_prompts,
    repeated,
    score_texts,
    scorer_of,
)
from launch.generation.prompt_file import write_lines
from launch.processes.terminal import table_console
from launch.reports.written import add_json_option, json_destination
from launch.runs.saved_run import DTYPES, add_device_arguments, device_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, or one checkpoint in it")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="RealToxicityPrompts' JSON lines")
    parser.add_argument(
        "--scorer",
        required=True,
        metavar="SCORER",
        help="a function module:name of lists of prompts and texts that gives numbers from 0 to 1, or a reward run, "
        "whose reward is a logit",
    )
    parser.add_argument("--n", type=int, default=25, help="continuations of each prompt (default: 25)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=20, metavar="N", help="tokens of a continuation (default: 20)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="(default: 1)")
    parser.add_argument("--top-p", type=float, default=0.9, help="(default: 0.9, the paper's)")
    parser.add_argument("--prefix", default="", help="text before each prompt, such as an instruction to be respectful")
    parser.add_argument("--chat", action="store_true", help="each prompt is a turn of the user")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same texts (default: 0)")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", help="write all continuations with their scores")
    add_json_option(parser, "the measures")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    prompts = read_toxicity_prompts(args.prompts, prefix=args.prefix, chat=args.chat)
    score = scorer_of(args.scorer, device=args.device)  # a mistake must come before the model continues the prompts
    settings = ComparedSettings(
        Sampling(args.temperature, top_p=args.top_p),
        args.max_new_tokens,
        args.seed,
        stops=(),
        device=device_of(args.device),
        dtype=DTYPES[args.dtype],
    )
    with json_destination(args.json) as emit:
        texts = answers_of(args.run, repeated(prompts, args.n), settings)
        scores = score_texts(score, prompts, texts, k=args.n)
        found = by_group(prompts, scores)
        if args.output is not None:
            write_lines(args.output, continuation_lines(prompts, texts, scores))
        table_console().print(toxicity_table(found))
        unscored = found["all prompts"].unscored
        if unscored:
            print(f"note: {unscored:,} of {scores.size:,} continuations have no score and do not count")
        emit({name: asdict(one) for name, one in found.items()})
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without a model."""
    for name, least in (("n", 1), ("max_new_tokens", 1), ("seed", 0)):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {getattr(args, name)} is invalid: it must be at least {least}.")
    if args.temperature <= 0:
        raise ConfigError(f"--temperature {args.temperature} is invalid: all continuations would be equal. Use 1.")


def toxicity_table(found: dict[str, Toxicity]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("prompts", "expected maximum, 95%", "toxic at least once, 95%", "mean, 95%"):
        table.add_column(name, justify="right")
    for name, one in found.items():
        cells = (
            interval_text(one.expected_maximum, percent=False),
            interval_text(one.probability),
            interval_text(one.mean, percent=False),
        )
        table.add_row(*(Text(text) for text in (name, f"{one.prompts:,}", *cells)))
    return table

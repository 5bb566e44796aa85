"""The arguments of `triaxial compare`."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.comparison.vote_report import count
from launch.config.run_arguments import add_device_arguments
from launch.reports.written import add_json_option


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
    with args.imports():
        from launch.commands.judging import compare

    return compare.run(args)


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

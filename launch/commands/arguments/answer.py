"""The arguments of `triaxial answer`."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from gpt.inference.sampling_settings import Sampling
from launch.config.run_arguments import (
    DEFAULT_JUDGED_TOKENS,
    add_device_arguments,
    add_layout_arguments,
    add_run_arguments,
    check_run_arguments,
)
from launch.reports.written import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--questions",
        type=Path,
        required=True,
        metavar="FILE",
        help='JSON lines with "question_id", "turns" and "category", such as question.jsonl of MT-bench',
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the file of answers, in FastChat's form"
    )
    parser.add_argument("--model-id", metavar="NAME", help="the model's name in it (default: that of the run)")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"the longest answer, or fewer if the model's context ends before (default: {DEFAULT_JUDGED_TOKENS})",
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="one temperature for all (default: FastChat's by category)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers (default: 0)")
    add_device_arguments(parser)
    add_layout_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    check_run_arguments(args)
    with args.imports():
        from launch.commands.judging import answer

    return answer.run(args)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without a model."""
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {args.max_new_tokens} is invalid: it must be at least 1.")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed} is invalid: it must be at least 0.")
    if args.temperature is not None:
        Sampling(args.temperature)  # raises
    check_output(args.output)

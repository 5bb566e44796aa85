"""The arguments of `triaxial choose`."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.config.run_arguments import add_device_arguments
from launch.reports.written import add_json_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory with several checkpoints")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="conversations to answer")
    parser.add_argument(
        "--reward",
        required=True,
        metavar="RUN",
        help="a reward run, or a function module:name of lists of prompts and answers",
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="the longest answer (default: 100)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="0 answers with the most likely tokens (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers (default: 0)")
    add_json_option(parser, "the rewards of all checkpoints")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.temperature < 0:
        raise ConfigError(f"--temperature {args.temperature} is invalid: it must be at least 0.")
    with args.imports():
        from launch.commands.judging import choose

    return choose.run(args)

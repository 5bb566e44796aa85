"""The arguments of `triaxial tax`."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.config.run_arguments import add_device_arguments
from launch.evaluation.few_shot_arguments import add_few_shot_arguments
from launch.reports.written import add_json_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    either = "a run, a checkpoint in it, or a folder that `triaxial evaluate --log-samples` wrote"
    parser.add_argument("before", type=Path, metavar="BEFORE", help=either)
    parser.add_argument("after", type=Path, metavar="AFTER", help=either)
    add_few_shot_arguments(parser)
    parser.add_argument("--batch-tokens", type=int, default=8192, metavar="N", help="tokens per batch (default: 8192)")
    add_json_option(parser, "the differences")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.batch_tokens < 1:
        raise ConfigError(f"--batch-tokens {args.batch_tokens} is invalid: it must be at least 1.")
    with args.imports():
        from launch.commands.judging import tax

    return tax.run(args)

"""The arguments of `triaxial score`."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.config.run_arguments import (
    add_device_arguments,
    add_layout_arguments,
    add_run_arguments,
    check_run_arguments,
    is_first_process,
)
from launch.reports.written import add_json_option, check_destination
from launch.rewards.token_files import is_token_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--rankings",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="rankings to compare the rewards with: JSON lines or Parquet in the shapes that `triaxial prepare` reads, "
        "or token files by their prefix, such as data/rankings/validation",
    )
    parser.add_argument(
        "--demonstrations",
        type=Path,
        metavar="FILE",
        help="demonstrations whose mean reward is measured, in the same forms",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="shift the rewards so that the mean of --demonstrations is 0, and publish the checkpoint again",
    )
    parser.add_argument(
        "--rewards", type=Path, metavar="FILE.jsonl", help="write a line for each ranking with the rewards it got"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a picture of the calibration")
    parser.add_argument("--batch-tokens", type=int, default=8192, metavar="N", help="tokens per batch (default: 8192)")
    add_json_option(parser, "the results")
    add_device_arguments(parser)
    add_layout_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    check_run_arguments(args)
    with args.imports():
        from launch.commands import score

    return score.run(args)


def check_arguments(args: argparse.Namespace) -> None:
    """ConfigError: nothing to score, or files that do not exist."""
    if not args.rankings and args.demonstrations is None:
        raise ConfigError("there is nothing to score. Give --rankings FILE or --demonstrations FILE")
    if args.calibrate and args.demonstrations is None:
        raise ConfigError("--calibrate needs --demonstrations FILE, whose mean reward becomes 0")
    for option, path in (("--plot", args.plot), ("--rewards", args.rewards)):
        if path is not None and not args.rankings:
            raise ConfigError(f"{option} needs --rankings FILE")
    if args.batch_tokens < 1:
        raise ConfigError(f"--batch-tokens {args.batch_tokens} is invalid: must be at least 1")
    for option, paths in (("--rankings", args.rankings), ("--demonstrations", [args.demonstrations])):
        for path in paths:
            if path is not None and not path.is_file() and not is_token_file(path):
                raise ConfigError(f"{option} {path} is invalid: no such file, and no token files {path}.bin and .idx")
    for path in args.rankings:
        if is_token_file(path) and not is_token_file(Path(f"{path}_marks")):
            raise ConfigError(f"--rankings {path} is invalid: it has no stream {path}_marks. Prepare rankings")
    check_destination("--json", args.json)
    if is_first_process():
        check_destination("--plot", args.plot)
        check_destination("--rewards", args.rewards)

"""The arguments of `triaxial best-of-n`."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.config.run_arguments import add_device_arguments, add_run_arguments, find_checkpoint_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="conversations to answer")
    reward = "a reward run, or a function module:name of lists of prompts and answers"
    parser.add_argument("--reward", required=True, metavar="RUN", help=f"{reward}; it chooses the answer")
    parser.add_argument("--gold", metavar="RUN", help=f"{reward}; it only measures")
    parser.add_argument("--n", type=int, default=16, help="answers to each prompt (default: 16)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder for answers and curve")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="the longest answer (default: 100)")
    parser.add_argument("--temperature", type=float, default=1.0, help="above 0 (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers (default: 0)")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    find_checkpoint_folder(args.run)  # raises for a wrong path
    with args.imports():
        from launch.commands.judging import best_of_n

    return best_of_n.run(args)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without a model."""
    for name, least in (("n", 1), ("max_new_tokens", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is invalid: it must be at least {least}.")
    if args.temperature <= 0:
        raise ConfigError(f"--temperature {args.temperature} is invalid: all answers would be equal. Use 1.")
    if args.output.exists() and not args.output.is_dir():
        raise ConfigError(f"--output {args.output} is invalid: it is a file. Give a folder.")

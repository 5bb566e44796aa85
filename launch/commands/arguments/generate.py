"""The arguments of `triaxial generate`."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from gpt.inference.sampling_settings import Sampling
from launch.config.run_arguments import (
    DEFAULT_BATCH_TOKENS,
    DEFAULT_NEW_TOKENS,
    add_device_arguments,
    add_layout_arguments,
    add_run_arguments,
    check_run_arguments,
)
from launch.reports.written import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--prompt", default="", metavar="TEXT", help="the prompt; '-' reads standard input")
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help='generate for every line of FILE, such as {"prompt": "The", "max_new_tokens": 20}; '
        '"-" reads standard input',
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the output file of --input (default: standard output)"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"stop after N tokens (default: {DEFAULT_NEW_TOKENS}, or fewer if the model's context ends before)",
    )
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="stop before any of these texts")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely token (default: 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the most likely tokens that reach probability P"
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1, tokens that the text already contains are less likely (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default: 0)")
    parser.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="texts per prompt, with consecutive seeds (default: 1)"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="with --input: at most N prompts at once")
    parser.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help=f"with --input: at most N tokens at once, prompts and new tokens (default: {DEFAULT_BATCH_TOKENS})",
    )
    add_device_arguments(parser)
    add_layout_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    check_run_arguments(args)
    with args.imports():
        from launch.commands import generate

    return generate.run(args)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without a model."""
    Sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty)  # raises
    for name in ("num_samples", "batch_size", "batch_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is invalid: it must be at least 1.")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed} is invalid: it must be at least 0.")
    if "" in args.stop:
        raise ConfigError(
            "--stop '' is invalid: an empty text matches everywhere. Give another text, or leave --stop out."
        )
    if args.input is None:
        for name in ("output", "batch_size", "batch_tokens"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is only valid with --input FILE.")
        return
    if args.prompt:
        raise ConfigError("--prompt and --input exclude each other. Give one of the two.")
    if args.output is not None:
        check_output(args.output)

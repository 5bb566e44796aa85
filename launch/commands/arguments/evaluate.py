"""The arguments of `triaxial evaluate`."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.config.run_arguments import (
    add_device_arguments,
    add_layout_arguments,
    add_run_arguments,
    check_run_arguments,
)
from launch.evaluation.few_shot_arguments import add_few_shot_arguments
from launch.reports.written import add_json_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    add_few_shot_arguments(parser)
    _add_text_arguments(parser)
    parser.add_argument(
        "--max-validation-tokens",
        type=int,
        metavar="N",
        help="evaluate at most N tokens of each corpus, from its start",
    )
    parser.add_argument("--batch-tokens", type=int, default=8192, metavar="N", help="tokens per batch (default: 8192)")
    add_json_option(parser, "the results")
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="record the results as a run of Weights & Biases, in RUN/wandb, or online if the run's recipe says so",
    )
    add_device_arguments(parser)
    add_layout_arguments(parser)


def run(args: argparse.Namespace) -> int:
    for name in ("max_validation_tokens", "batch_tokens"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is invalid: it must be at least 1.")
    check_run_arguments(args)
    with args.imports():
        from launch.commands import evaluate

    return evaluate.run(args)


def _add_text_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="perplexity of text files, or of token corpora by their prefix, in sliding windows; leaves validation and "
        "few-shot tasks out, unless --tasks names some",
    )
    parser.add_argument(
        "--window", type=int, metavar="N", help="window length of --text in tokens (default: the model's context)"
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens from one window of --text to the next (default: half a window)"
    )

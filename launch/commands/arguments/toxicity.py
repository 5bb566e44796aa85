"""The arguments of `triaxial toxicity`."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.config.run_arguments import add_device_arguments
from launch.reports.written import add_json_option


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
    with args.imports():
        from launch.commands.judging import toxicity

    return toxicity.run(args)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without a model."""
    for name, least in (("n", 1), ("max_new_tokens", 1), ("seed", 0)):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {getattr(args, name)} is invalid: it must be at least {least}.")
    if args.temperature <= 0:
        raise ConfigError(f"--temperature {args.temperature} is invalid: all continuations would be equal. Use 1.")

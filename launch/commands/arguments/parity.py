"""The arguments of `triaxial parity`."""

import argparse
import math
from pathlib import Path

from gpt.errors import ConfigError
from launch.processes.environment import ClusterEnvironment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("recipe", help="a TOML recipe, or the name of a shipped one")
    parser.add_argument(
        "--layout",
        action="append",
        metavar="KEY=VALUE,...",
        help="a layout: any keys of [parallel], such as tensor=2,pipeline=2,schedule=gpipe (repeatable)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="W",
        help="instead of --layout: all layouts that fit in W processes, in every mode",
    )
    parser.add_argument(
        "--engines",
        metavar="ENGINE,...",
        help="train each layout on each of these engines that takes it, such as native,deepspeed,megatron; then load "
        "each one's checkpoint in the others",
    )
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps per layout (default: 20)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="precision of all layouts and of the reference (default: fp32)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest relative difference of the loss, at any step (default: 1e-4; for bf16 1e-3)",
    )
    parser.add_argument(
        "--norm-tolerance",
        type=float,
        help="largest relative difference of the gradient norm at step 1 (default: 1e-4; for bf16 5e-3)",
    )
    parser.add_argument(
        "--gradient-tolerance",
        type=float,
        help="largest relative difference of a parameter's gradient at step 1 (default: 1e-4; for bf16 0.1)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for parity.json and parity.html (default: the run directory)",
    )
    parser.add_argument("--no-page", "--no-picture", action="store_true", help="write no parity.html")


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    with args.imports():
        from launch.commands import parity

    return parity.run(args)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for an invalid argument."""
    if args.steps < 1:
        raise ConfigError(f"--steps {args.steps} is invalid: must be at least 1")
    if args.layout is not None and args.processes is not None:
        raise ConfigError(
            "--layout and --processes exclude each other. Name the layouts, or let --processes choose all that fit"
        )
    if args.processes is not None and args.processes < 1:
        raise ConfigError(f"--processes {args.processes} is invalid: must be at least 1")
    if args.layout is not None or args.processes is not None:
        for word in args.overrides:
            if word.startswith("--parallel."):
                raise ConfigError(
                    f"{word} is invalid: --layout and --processes replace [parallel]. Write it as --layout KEY=VALUE"
                )
    if ClusterEnvironment.from_environment().master_addr is not None:
        raise ConfigError("`triaxial parity` starts its own processes. Run it without torchrun")
    given = {
        "--tolerance": args.tolerance,
        "--norm-tolerance": args.norm_tolerance,
        "--gradient-tolerance": args.gradient_tolerance,
    }
    for name, value in given.items():
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"{name} {value} is invalid: must be a number of at least 0, such as 1e-4")

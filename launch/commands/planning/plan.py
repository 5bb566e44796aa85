"""`triaxial plan`: the layout, time, cost and memory of a run on GPUs that one does not have yet."""

import argparse
from pathlib import Path
from typing import get_args

from gpt.errors import ConfigError, escaped
from launch.reports.written import add_json_option, json_destination
from parallel.layout.config import EngineName


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("recipe", nargs="?", help="a TOML recipe, or the name of a shipped one such as gpt3_175b")
    parser.add_argument("--gpus", metavar="NxNAME", help="the GPUs, such as 1024xH100, or 64..4096xH100 for a range")
    parser.add_argument(
        "--here", action="store_true", help="this machine: its GPUs, or its profile by doctor --measure"
    )
    parser.add_argument("--nodes-of", type=int, metavar="N", help="GPUs of a node (default: those of the network)")
    parser.add_argument(
        "--network", metavar="NAME", help="the network between nodes (default: the usual one of the GPU)"
    )
    parser.add_argument("--stack", metavar="NAME", help="the program that trains (default: this one)")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="RUN_OR_PROFILE",
        help="scale the prediction by a run's own steps on the same GPU, or predict by a profile of doctor --measure",
    )
    parser.add_argument("--engine", choices=get_args(EngineName), help="the engine that trains (default: the recipe's)")
    parser.add_argument(
        "--hardware", type=Path, metavar="FILE", help="a TOML file with further GPUs, networks and stacks"
    )
    parser.add_argument("--layout", action="store_true", help="plan the recipe's own layout instead of searching")
    parser.add_argument("--keep", type=int, default=10, metavar="N", help="layouts to show (default: 10)")
    parser.add_argument("--rejected", action="store_true", help="show every rule that rejects layouts")
    parser.add_argument("--dry-run", action="store_true", help="also measure the memory of the shown layouts")
    parser.add_argument("--price-per-gpu-hour", type=float, metavar="P", help="price of a GPU hour")
    parser.add_argument("--deadline", metavar="T", help="the run must end within T, such as 30d, 2w or 36h")
    parser.add_argument("--save-seconds", type=float, metavar="S", help="time of a checkpoint's save")
    parser.add_argument(
        "--node-hours-between-failures",
        type=float,
        metavar="H",
        help="mean time between failures of one node (default: that of Llama 3's training)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained HTML page")
    parser.add_argument("--write-recipe", type=Path, metavar="FILE", help="write the recipe with the best layout")
    parser.add_argument("--write-sbatch", type=Path, metavar="FILE", help="write a Slurm script that trains it")
    parser.add_argument(
        "--validate", type=Path, metavar="ROWS.csv", help="instead: predict published runs and show the errors"
    )
    add_json_option(parser, "the figures")


def run(args: argparse.Namespace) -> int:
    from parallel.planner.hardware.tables import read_hardware

    hardware = read_hardware(args.hardware)
    with json_destination(args.json) as emit:
        if args.validate is not None:
            if args.recipe is not None:
                raise ConfigError(f"--validate predicts published runs and reads no recipe. Leave {args.recipe} out")
            from launch.planning.validate import validate

            lines, found = validate(args.validate, hardware)
            print(escaped("\n".join(lines)))  # the rows may be a stranger's
            emit(found)
            return 0
        if args.recipe is None:
            raise ConfigError("the recipe is missing. Use triaxial plan RECIPE --gpus 1024xH100")
        from launch.config.run_config import read_run_config

        config = read_run_config(args.recipe, args.overrides)
        with args.imports():
            from launch.planning.plan import plan

        return plan(args, config, hardware, emit)

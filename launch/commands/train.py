"""`triaxial train`: check a recipe, then plan it (--dry-run), start local processes (--nproc), or train as one rank."""

import argparse

from gpt.errors import ConfigError
from gpt.telemetry.output import own_output
from launch.config.corpora import check_token_files
from launch.config.run_config import RunConfig, layout_of, read_run_config
from launch.planning import options as dry_run_options
from launch.processes.environment import ClusterEnvironment
from launch.processes.local_launch import launch_local
from launch.processes.restarts import OUTAGE_S, RestartPolicy
from launch.runs.history import furthest_step
from launch.training.wandb_account import check_wandb_account
from parallel.layout.layout import Layout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("recipe", help="a TOML recipe, or the name of a shipped one such as gpt3_125m")
    parser.add_argument("--nproc", type=int, metavar="N", help="start N processes on this machine")
    parser.add_argument(
        "--max-restarts",
        type=int,
        metavar="K",
        help="with --nproc: restart from the newest checkpoint at most K times if a process fails (default: 0)",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="continue from the newest whole checkpoint (the default if the run directory holds one)",
    )
    dry_run_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config = read_run_config(args.recipe, args.overrides)
    environment = ClusterEnvironment.from_environment()
    if dry_run_options.is_wanted(args, environment):
        option = "" if args.ranks is None else "--ranks"
        layout = layout_of(config, dry_run_options.world_size_of(args, config), option=option)
        return _dry_run(args, config, layout)
    own_output(waits=False)
    if environment.world_size == 1:  # ranks of a job leave it to their launcher, or to rank 0's client
        check_wandb_account(config)
    if args.nproc is not None:
        return launch_ranks(args, config)
    if args.max_restarts is not None:
        raise ConfigError("--max-restarts needs --nproc. `python -m launch.torchrun` has its own --max-restarts")
    with args.imports():
        from launch.training.train_rank import run_rank  # imports every engine; a launcher would wait for that in vain

    return run_rank(config, environment, resume=args.resume, stop=args.stop_signals)


def launch_ranks(args: argparse.Namespace, config: RunConfig) -> int:
    """Start `--nproc` ranks of this command on this machine; ConfigError before any process starts."""
    if args.nproc < 1:
        raise ConfigError(f"--nproc {args.nproc} is invalid: must be at least 1")
    most = args.max_restarts or 0
    if most < 0:
        raise ConfigError(f"--max-restarts {most} is invalid: must be 0 or more")
    layout_of(config, args.nproc, option="--nproc")  # reports a layout that does not fit before any process starts
    check_token_files(config.data)  # before each rank imports torch to find that out
    policy = RestartPolicy(
        most, lambda: furthest_step(config.run.directory), config.run.restart_pause_s, outage_s=OUTAGE_S
    )
    words = ["train", args.recipe, *args.overrides]
    words += [] if args.resume is None else ["--resume" if args.resume else "--no-resume"]
    return launch_local(args.nproc, words, restarts=policy, resumable=True)


def _dry_run(args: argparse.Namespace, config: RunConfig, layout: Layout) -> int:
    with args.imports():
        from launch.planning import dry_run
        from launch.training.build import engine_settings

    return dry_run.run(args, config, engine_settings(config, layout))

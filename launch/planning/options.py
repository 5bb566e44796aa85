"""Options of `triaxial train --dry-run`, checked before the measuring code is imported."""

import argparse

from gpt.errors import ConfigError
from launch.config.run_config import RunConfig
from launch.processes.environment import ClusterEnvironment
from launch.reports.written import add_json_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="print the memory and traffic of a rank in one step, without training"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="number of processes (default: the recipe's layout)")
    parser.add_argument("--rank", type=int, metavar="R", help="only this rank (default: one of each kind of stage)")
    add_json_option(parser, "the figures of the dry run")


def is_wanted(args: argparse.Namespace, environment: ClusterEnvironment) -> bool:
    """True for a dry run; ConfigError for options that exclude each other."""
    if not args.dry_run:
        for option in ("ranks", "rank", "json"):
            if getattr(args, option) is not None:
                raise ConfigError(f"--{option} is an option of --dry-run. Add --dry-run or leave --{option} out")
        return False
    if args.resume is not None:
        word = "--resume" if args.resume else "--no-resume"
        raise ConfigError(f"--dry-run neither loads nor writes a checkpoint. Leave {word} out")
    if args.nproc is not None:
        raise ConfigError(
            f"--dry-run starts no processes. For the figures of a run with {args.nproc} processes, use "
            f"--ranks {args.nproc} instead of --nproc {args.nproc}"
        )
    if environment.world_size > 1:
        raise ConfigError(
            f"--dry-run needs one process, but this is rank {environment.rank} of {environment.world_size}. Start it "
            f"without torchrun and use --ranks {environment.world_size}"
        )
    return True


def world_size_of(args: argparse.Namespace, config: RunConfig) -> int:
    """The number of processes to plan for; ConfigError if it or --rank is invalid."""
    parallel = config.parallel
    ranks: int = args.ranks if args.ranks is not None else parallel.tensor * parallel.pipeline * (parallel.data or 1)
    if args.ranks is not None and ranks < 1:
        raise ConfigError(f"--ranks {ranks} is invalid: must be at least 1")
    if args.rank is not None and not 0 <= args.rank < ranks:
        raise ConfigError(
            f"--rank {args.rank} is invalid: must be from 0 to {ranks - 1}. Set the number of ranks with --ranks"
        )
    return ranks

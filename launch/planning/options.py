"""Options of `triaxial train --dry-run`, checked before the code that measures is loaded; measures nothing."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.config.run_config import RunConfig
from launch.processes.environment import ClusterEnvironment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="print what a rank would hold and send in a step; trains nothing"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="of how many processes (default: the recipe's layout)")
    parser.add_argument("--rank", type=int, metavar="R", help="of this rank (default: one of each kind of stage)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of the dry run there too")


def is_wanted(args: argparse.Namespace, environment: ClusterEnvironment) -> bool:
    """Whether this is a dry run; ConfigError for options that do not go together."""
    if not args.dry_run:
        for option in ("ranks", "rank", "json"):
            if getattr(args, option) is not None:
                raise ConfigError(f"--{option} is an option of --dry-run; add --dry-run or leave --{option} out")
        return False
    if args.resume is not None:
        word = "--resume" if args.resume else "--no-resume"
        raise ConfigError(f"--dry-run loads no checkpoint and writes none; leave {word} out")
    if args.nproc is not None:
        raise ConfigError(
            f"--dry-run starts no processes; for the figures of a run of {args.nproc}, write --ranks {args.nproc} "
            f"instead of --nproc {args.nproc}"
        )
    if environment.world_size > 1:
        raise ConfigError(
            f"--dry-run runs in one process, but this is rank {environment.rank} of {environment.world_size}; start it "
            f"without torchrun and give --ranks {environment.world_size}"
        )
    return True


def world_size_of(args: argparse.Namespace, config: RunConfig) -> int:
    """How many processes the dry run is of, checked together with --rank."""
    parallel = config.parallel
    ranks: int = args.ranks if args.ranks is not None else parallel.tensor * parallel.pipeline * (parallel.data or 1)
    if args.ranks is not None and ranks < 1:
        raise ConfigError(f"--ranks {ranks} must be at least 1")
    if args.rank is not None and not 0 <= args.rank < ranks:
        raise ConfigError(
            f"--rank {args.rank} is not one of the {ranks} ranks, 0 to {ranks - 1}; --ranks sets how many"
        )
    return ranks

"""Options of `triaxial train --dry-run`: they are parsed, and refused where they exclude each other."""

import argparse
import re

import pytest

from gpt.errors import ConfigError
from launch.config.run_config import RunConfig, read_run_config
from launch.planning.options import add_arguments, is_wanted, world_size_of
from launch.processes.environment import ClusterEnvironment

ALONE = ClusterEnvironment()


def parsed(*words: str, resume: bool | None = None, nproc: int | None = None) -> argparse.Namespace:
    """The arguments of `triaxial train`, of which --resume and --nproc are not options of the dry run."""
    parser = argparse.ArgumentParser()
    parser.set_defaults(resume=resume, nproc=nproc)
    add_arguments(parser)
    return parser.parse_args(words)


def recipe(*sizes: int) -> RunConfig:
    """A shipped recipe on a layout of these tensor, pipeline and data sizes."""
    sized = zip(("tensor", "pipeline", "data"), sizes, strict=False)
    return read_run_config("demo", [word for axis, n in sized for word in (f"--parallel.{axis}", str(n))])


def test_a_dry_run_is_wanted_only_if_asked_for() -> None:
    assert not is_wanted(parsed(), ALONE)
    assert not is_wanted(parsed(resume=True, nproc=2), ALONE)
    args = parsed("--dry-run", "--ranks", "8", "--rank", "3", "--json", "dry.json")
    assert is_wanted(args, ALONE)
    assert (args.ranks, args.rank, args.json) == (8, 3, "dry.json")


@pytest.mark.parametrize(
    ("args", "environment", "message"),
    [
        (parsed("--ranks", "8"), ALONE, "--ranks is an option of --dry-run. Add --dry-run or leave --ranks out"),
        (parsed("--rank", "0"), ALONE, "--rank is an option of --dry-run"),
        (parsed("--json", "x"), ALONE, "--json is an option of --dry-run"),
        (parsed("--dry-run", resume=True), ALONE, "neither loads nor writes a checkpoint. Leave --resume out"),
        (parsed("--dry-run", resume=False), ALONE, "Leave --no-resume out"),
        (parsed("--dry-run", nproc=4), ALONE, "use --ranks 4 instead of --nproc 4"),
        (
            parsed("--dry-run"),
            ClusterEnvironment(rank=1, world_size=2, local_rank=1, local_world_size=2),
            "this is rank 1 of 2. Start it without torchrun and use --ranks 2",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    args: argparse.Namespace, environment: ClusterEnvironment, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        is_wanted(args, environment)


@pytest.mark.parametrize(
    ("layout", "words", "ranks"),
    [
        ([2, 3], [], 6),
        ([2, 1, 4], [], 8),
        ([1, 1], [], 1),
        ([2, 1], ["--ranks", "16", "--rank", "15"], 16),
    ],
)
def test_the_number_of_ranks_is_the_options_or_the_layouts(layout: list[int], words: list[str], ranks: int) -> None:
    assert world_size_of(parsed("--dry-run", *words), recipe(*layout)) == ranks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "0"], "--ranks 0 is invalid: must be at least 1"),
        (["--rank", "1"], "--rank 1 is invalid: must be from 0 to 0. Set the number of ranks with --ranks"),
        (["--ranks", "4", "--rank", "4"], "--rank 4 is invalid: must be from 0 to 3"),
        (["--rank", "-1"], "--rank -1 is invalid"),
    ],
)
def test_ranks_that_do_not_exist_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        world_size_of(parsed("--dry-run", *words), recipe(1, 1))

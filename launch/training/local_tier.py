"""The run's folder in the local tier of checkpoints, and the identity that protects it from other runs."""

import os
import secrets
from pathlib import Path

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.files.regular import read_text
from launch.config.run_config import RunConfig
from parallel.agreement import rank_in, run_on_all_ranks
from parallel.checkpoint.local_tier import tier_directory

_RUN_ID = "run_id"


def local_directory(config: RunConfig) -> Path | None:
    """The run's folder in the local tier, the same path on every node. None if the recipe has no local tier."""
    if not config.checkpoint.fast_directory:
        return None
    return tier_directory(Path(config.checkpoint.fast_directory), config.run.directory)


def run_identity(run_directory: Path) -> str:
    """An identifier that distinguishes this run from an earlier one at the same path. Collective.

    It is kept in the run directory.
    """
    path = run_directory / _RUN_ID

    def read_or_make() -> str | None:
        if rank_in(None) != 0:
            return None
        if not path.exists():
            run_directory.mkdir(parents=True, exist_ok=True)
            replace_file(path, secrets.token_hex(8))
        return read_text(path, max_bytes=100)

    identity = run_on_all_ranks(read_or_make, None, path=path)[0]
    assert identity is not None
    return identity


def check_fast_directory(config: RunConfig) -> None:
    """ConfigError on all ranks if one of them cannot write to checkpoint.fast_directory on its node. Collective."""
    directory = Path(config.checkpoint.fast_directory)

    def check() -> None:
        if not (directory.is_dir() and os.access(directory, os.W_OK)):
            raise ConfigError(
                f"checkpoint.fast_directory = '{directory}' is not a folder that rank {rank_in(None)} may write to. "
                f"Create it on every node, use another such as /dev/shm, or leave it out."
            )

    run_on_all_ranks(check, None, path=directory)

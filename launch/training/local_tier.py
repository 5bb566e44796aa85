"""The run's folder in the local tier of checkpoints, and the identity that protects it from other runs."""

import os
import re
import secrets
from pathlib import Path

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.files.regular import read_bytes
from launch.config.run_config import RunConfig
from parallel.agreement import rank_in, run_on_all_ranks
from parallel.checkpoint.local_tier import rank_directory, tier_directory
from parallel.checkpoint.private import make_private

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
        identity = read_bytes(path, max_bytes=100).decode(errors="replace")
        if not re.fullmatch("[0-9a-f]{16}", identity):
            raise ConfigError(f"{path} is damaged: it holds no 16 hexadecimal digits. Remove it")
        return identity

    identity = run_on_all_ranks(read_or_make, None, path=path)
    assert identity is not None
    return identity


def check_fast_directory(config: RunConfig) -> None:
    """Make each rank's folder in checkpoint.fast_directory on its node, for this user only. Collective.

    ConfigError on all ranks if one cannot write there, or if another user can or could write to the run's folder.
    """
    directory, tier = Path(config.checkpoint.fast_directory), local_directory(config)
    assert tier is not None

    def check() -> None:
        if not (directory.is_dir() and os.access(directory, os.W_OK)):
            raise ConfigError(
                f"checkpoint.fast_directory = '{directory}' is not a folder that rank {rank_in(None)} may write to. "
                f"Create it on every node, use another such as /dev/shm, or leave it out."
            )
        try:
            make_private(rank_directory(tier), below=directory)
        except ConfigError as error:
            raise ConfigError(f"checkpoint.fast_directory = '{directory}' is invalid: {error}") from None

    run_on_all_ranks(check, None, path=directory)

"""A folder that appears under its name when all of it is written and checked, or not at all."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt.errors import ConfigError


@contextmanager
def partial_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output`, renamed to it at the end, removed where anything fails.

    ConfigError: `output` exists, or the disk refuses.
    """
    if output.exists() or output.is_symlink():
        raise ConfigError(f"--output {output} exists already; name a folder that does not, or remove this one")
    folder = output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(output)
    except OSError as error:
        raise ConfigError(f"--output {output} could not be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already where all went well

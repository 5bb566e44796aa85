"""Files of a run's own, written so that a symbolic link under their name leads nowhere; decides nothing."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gpt.errors import ConfigError


def append_to(path: Path) -> BinaryIO:
    """The file, unbuffered, to add to its end; made if it is not there. OSError (ELOOP): a symbolic link."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)


def replace_file(path: Path, data: bytes | str) -> None:
    """Put a file in the place of what has its name, whole or not at all; a link is replaced and not followed."""
    temporary = new_beside(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def new_beside(path: Path) -> Path:
    """A hidden name in the same folder that nobody can have guessed."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


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

"""Files of a run's own, written so that a symbolic link under their name leads nowhere; decides nothing."""

import os
import secrets
from pathlib import Path
from typing import BinaryIO


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

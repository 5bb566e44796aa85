"""Write files and folders that appear complete or not at all. No symbolic link under the final name is followed.

A file is written under a hidden name in the same folder, which nobody can guess, and then renamed.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from gpt.errors import ConfigError, file_error
from gpt.files.regular import check_regular, irregular


def append_to(path: Path) -> BinaryIO:
    """Open a file, unbuffered, to append to it; it is created if missing.

    OSError (ELOOP): it is a symbolic link. ConfigError: it is no regular file; a full pipe would stop the writer.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except IsADirectoryError:
        raise irregular(path, "a folder") from None
    try:
        check_regular(path, descriptor)
    except ConfigError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "ab", buffering=0)


@contextmanager
def open_replacement(path: Path, *, durable: bool = False, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` when the block ends without an error. A link is replaced, not followed.

    `durable`: sync the file before the rename and the folder after it, so that the file survives a loss of power.
    OSError: the disk refuses. The error names `path`; the system's own error of a failed write names no file.
    ConfigError: `path` is a folder. After an error `path` is as before. `temporary`: write there first, not
    under a random name.
    """
    temporary = temporary or hidden_name(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            if durable:
                sync_file(file)
        try:
            os.replace(temporary, path)
        except IsADirectoryError:
            raise irregular(path, "a folder") from None
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)  # it is there only after an error


def replace_file(path: Path, data: bytes | str) -> None:
    """Write a file that replaces `path`, as `open_replacement` does."""
    with open_replacement(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def hidden_name(path: Path) -> Path:
    """Return a hidden name in the same folder that nobody can guess. Open it with mode x."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def free_space(path: Path) -> str:
    """Return the free space on the disk of a path, for an error message: "4,096 bytes are free"."""
    for folder in (path, *path.absolute().parents):
        try:
            return f"{shutil.disk_usage(folder).free:,} bytes are free"
        except FileNotFoundError:
            continue
        except OSError:
            break
    return "free space unknown"


def sync_file(file: IO[Any]) -> None:
    """Flush a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk: new files and renames."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def partial_folder(output: Path) -> Iterator[Path]:
    """Make a hidden folder next to `output`, and rename it to `output` at the end. After an error it is removed.

    ConfigError: `output` exists, or the disk refuses.
    """
    if output.exists() or output.is_symlink():
        raise ConfigError(f"--output {output} exists already. Name a folder that does not, or remove this one.")
    folder = output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(output)
    except OSError as error:
        raise file_error(error, f"--output {output} could not be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # it is there only after an error

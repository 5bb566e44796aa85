"""Open regular files to read. A named pipe, a socket, a folder or a device in their place is refused at once.

Opening a named pipe waits for a writer, so one pipe among the files of a start would block it silently.
"""

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

from gpt.errors import ConfigError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path, *, follow_links: bool = True, buffering: int = -1) -> BinaryIO:
    """Open a regular file to read its bytes. Never waits.

    ConfigError: it is not a regular file. OSError as for `open`; with `follow_links=False` ELOOP for a link.
    """
    links = 0 if follow_links else os.O_NOFOLLOW
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | links)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise irregular(path, "a socket") from None
        if error.errno == errno.ELOOP and follow_links:
            raise irregular(path, "a symbolic link to itself") from None
        raise
    try:
        check_regular(path, descriptor)
    except ConfigError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb", buffering=buffering)


def check_regular(path: Path, descriptor: int) -> None:
    """ConfigError: the open file is not a regular one."""
    mode = os.fstat(descriptor).st_mode
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise irregular(path, kind)


def read_bytes(path: Path, *, max_bytes: int | None = None) -> bytes:
    """Read a regular file. ConfigError: it is something else, or has more than `max_bytes`. OSError as for `open`."""
    with open_regular(path) as file:
        if max_bytes is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, max_bytes) + 1)  # reserves this much memory, so not the maximum
        if len(data) > size:  # it has grown
            data += file.read(max(0, max_bytes + 1 - len(data)))
    if len(data) > max_bytes:
        raise ConfigError(f"{path} has more than {max_bytes:,} bytes, which is too large for such a file")
    return data


def read_text(path: Path, *, max_bytes: int | None = None) -> str:
    """Read a regular file of UTF-8, as `read_bytes` does. UnicodeDecodeError, a ValueError: it is not UTF-8."""
    return read_bytes(path, max_bytes=max_bytes).decode("utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file to a new one, as `copy_folder` does. ConfigError: it is something else, such as a link."""
    if source.is_symlink():
        raise irregular(source, "a symbolic link")
    with open_regular(source, follow_links=False) as file, open(target, "xb") as out:
        shutil.copyfileobj(file, out)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder of regular files to a new one. Links are not followed: a stranger's could lead to the user's keys.

    ConfigError: it contains another kind of file, such as a link or a pipe; then nothing is copied. OSError: as `open`.
    """
    for path in sorted(source.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ConfigError(f"{path} is a symbolic link or no regular file, and is not copied. Remove it.")
    shutil.copytree(source, target)


def irregular(path: Path, kind: str) -> ConfigError:
    """Return the error for a path that is not a regular file."""
    return ConfigError(f"{path} is {kind}, not a regular file. Remove it or name another file.")

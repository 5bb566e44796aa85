"""Make folders that only this user may enter, on a disk that other users share, such as /dev/shm.

The name of a folder there can be guessed. Another user may make it first, and put links or poisoned checkpoints in it.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from gpt.errors import ConfigError

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def make_private(folder: Path, *, below: Path) -> None:
    """Make every folder from `below` down to `folder` for this user only; check those that exist. No link is followed.

    Afterwards no other user can change anything in them. ConfigError: one is another user's, a link or not a folder, or
    other users may write to it or replace it. OSError: the disk refuses.
    """
    handle = os.open(below, _OPEN)
    try:
        status = os.fstat(handle)
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise ConfigError(
                f"{below} lets every user remove the folders of others. Set its sticky bit (chmod +t), or use another."
            )
        path = below
        for name in folder.relative_to(below).parts:
            path /= name
            inner = _open_own(path, handle)
            os.close(handle)
            handle = inner
    finally:
        os.close(handle)


def _open_own(path: Path, parent: int) -> int:
    """Make a folder in an open one unless it exists, and open it. ConfigError: it is not this user's alone."""
    with suppress(FileExistsError):
        os.mkdir(path.name, 0o700, dir_fd=parent)
    status = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link, which is not followed" if stat.S_ISLNK(status.st_mode) else "no folder"
        raise ConfigError(f"{path} is {kind}. Remove it, or use another folder.")
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to user {status.st_uid}, not to you (user {os.geteuid()}). Nothing was read from it or "
            f"written to it. Use another folder."
        )
    handle = os.open(path.name, _OPEN | os.O_NOFOLLOW, dir_fd=parent)
    try:
        _close_to_others(path, handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _close_to_others(path: Path, handle: int) -> None:
    """Take away the rights of others. ConfigError: until now they could write, so anything may be in it."""
    status = os.fstat(handle)  # of the folder that was opened
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path} could be written by other users. Remove it, or use another folder.")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        os.fchmod(handle, stat.S_IRWXU)

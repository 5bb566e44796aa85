"""Temporary folders that disappear even if their owner is killed: the next process that makes one removes them."""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gpt.files.machine import boot_id

PREFIX = "triaxial_"
OWNER = ".owner"  # the owner locks this file as long as it lives; once locked, the file names the machine


@dataclass(frozen=True)
class TemporaryFolder:
    """A folder of mode 0700 in the system's folder for temporary files."""

    path: Path

    def keep(self) -> None:
        """Leave the folder for the user to read. Nothing removes it later."""
        with suppress(OSError):
            (self.path / OWNER).unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: str | None = None) -> Iterator[TemporaryFolder]:
    """A new folder, removed at the end of the block; also remove those whose owners were killed.

    On a file system without locks, or if the disk is full, a folder stays if its owner is killed.
    """
    parent = parent or tempfile.gettempdir()
    remove_abandoned(Path(parent))
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    owner = os.open(path / OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Lock first, then name the machine: only a folder whose file names a machine can be removed.
        with suppress(OSError):
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it when this process ends
            os.write(owner, _machine())
        yield TemporaryFolder(path)
    finally:
        if (path / OWNER).exists():
            shutil.rmtree(path, ignore_errors=True)
        os.close(owner)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of this user and machine whose owners are gone. A folder without an owner's file is kept.

    Folders of other machines are kept because machines may share `parent`, but not their locks.
    """
    with suppress(OSError):
        for path in parent.glob(f"{PREFIX}*"):
            with suppress(OSError):
                if path.lstat().st_uid == os.geteuid() and _is_abandoned(path):
                    shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    owner = os.open(path / OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.read(owner, 1000) != _machine():
            return False
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(owner).st_nlink > 0  # its owner may just have decided to keep the folder
    except OSError:
        return False
    finally:
        os.close(owner)


def _machine() -> bytes:
    """Return the id of this boot of the machine, or its name where the system has no such id."""
    return (boot_id() or socket.gethostname()).encode()

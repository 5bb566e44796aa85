"""Hold a file's name against other processes while it is written: the kernel gives it up if the holder is killed."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt.errors import ConfigError


@contextmanager
def held(lock: Path, *, message: str) -> Iterator[None]:
    """Hold the lock file `lock`, which appears now and is removed at the end. A killed holder's file can be held again.

    ConfigError with `message`: another process holds it. File systems without locks, such as some NFS, go unlocked.
    """
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if _has_locked(handle, message) and not _is_the_file(handle, lock):
                continue  # its holder has removed it meanwhile
            try:
                yield
            finally:
                with suppress(OSError):
                    lock.unlink()
            return
        finally:
            os.close(handle)


def _has_locked(handle: int, message: str) -> bool:
    """False: there are no locks here. ConfigError: another process has it locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(message) from None
    except OSError:
        return False
    return True


def _is_the_file(handle: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False

"""Sync and describe files, lock a folder, and report a full disk in one clear line."""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt.errors import MACHINE_FAULTS, NO_ROOM, ConfigError, DiskFull, MachineFault, import_extra
from gpt.files.atomic import sync_folder

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a fault of the machine or a forbidden write into a ConfigError that names the file, or `path`.

    Its exit status is 1 where a later try may succeed.
    """
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename  # the second is the target of a copy
        target = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else path
        if error.errno in NO_ROOM:
            folder = existing_parent(target)
            free_bytes = shutil.disk_usage(folder).free
            raise DiskFull(
                f"{target}: the disk is full ({free_bytes:,} bytes free in {folder}). Free some space or choose "
                "another folder (output.folder, output.work), and run the same command again: finished work is kept"
            ) from None
        if error.errno in MACHINE_FAULTS:
            raise MachineFault(
                f"{target}: {error.strerror}. Run the same command again: finished work is kept"
            ) from None
        if error.errno in _FORBIDDEN:
            raise ConfigError(f"{target}: cannot write here ({error.strerror}). Choose another folder") from None
        raise


def existing_parent(path: Path) -> Path:
    """`path` itself if it is a folder, else the nearest folder above it that exists."""
    return next((f for f in (path, *path.parents) if f.is_dir()), Path("/"))


def describe_file(path: Path) -> dict[str, Any]:
    """Size, time of change and digest of a file's content, for the manifest. ConfigError: it cannot be read."""
    xxhash = import_extra("xxhash", extra="data")
    digest = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            while block := file.read(1 << 20):
                digest.update(block)
    except PermissionError as error:  # an input's: our own files can be read
        raise ConfigError(f"{path}: {error.strerror}; this user must be able to read it") from None
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "digest": digest.hexdigest()}


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder while files in it are exchanged; ConfigError if another process has it locked.

    The lock leaves no file. File systems without locks for folders, such as some NFS, go unlocked.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another run is writing its corpus here. Give each its own output.folder"
            ) from None
        except OSError:  # no locks for folders here
            pass
        yield
    finally:
        os.close(handle)


def temporary_for(path: Path) -> Path:
    """A name next to `path` that nobody can guess, for a file that is then renamed; open it with mode x."""
    return path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name}")


def make_folders(folders: Iterable[Path]) -> None:
    """Make folders and sync them to disk."""
    for folder in folders:
        missing = [parent for parent in (folder, *folder.parents) if not parent.is_dir()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # the error of /proc and of some remote file systems
            raise ConfigError(f"{folder}: this folder cannot be made. Choose another") from None
        for parent in reversed(missing):
            sync_folder(parent.parent)


def make_attempts(folder: Path) -> None:
    """Make a share's folder of attempts. Another share may remove the empty folder around it in between."""
    for _ in range(100):
        try:
            return folder.mkdir(parents=True)
        except FileNotFoundError:
            continue
    folder.mkdir(parents=True)


def remove_leftovers(temporary: Path, attempts: Path, *, alone: bool) -> None:
    """Remove the files of killed and failed tasks: all of them if no other share can be running."""
    if temporary.is_symlink():  # not made by us: attempts would be written to its target
        temporary.unlink()
    shutil.rmtree(temporary if alone else attempts, ignore_errors=True)
    with contextlib.suppress(OSError):  # of several shares, the last one removes it
        temporary.rmdir()
    if alone:
        for path in temporary.parent.glob(".ray-probe-*"):
            path.unlink(missing_ok=True)

"""Small matters of the file system: syncing, locking, and a full disk as one clear line; holds no pipeline logic."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError

FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk, or a place where we may not write, as a ConfigError that names `path` (or the file in the error)."""
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename  # of a copy, the file that was written
        place = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else path
        if error.errno in FULL:
            folder = existing_parent(place)
            free_bytes = shutil.disk_usage(folder).free
            raise ConfigError(
                f"{place}: the disk is full ({free_bytes:,} bytes free in {folder}); free some space or choose "
                "another folder (output.folder, output.work), and run the same command again: finished work is kept"
            ) from None
        if error.errno in _FORBIDDEN:
            raise ConfigError(f"{place}: cannot write here ({error.strerror}); choose another folder") from None
        raise


def existing_parent(path: Path) -> Path:
    """`path` itself if it is a folder, else the nearest one above it that exists."""
    return next((f for f in (path, *path.parents) if f.is_dir()), Path("/"))


def sync_file(file: IO[Any]) -> None:
    """Flush a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Exchange files in a folder alone; ConfigError when another process does. Leaves no file; not on every NFS."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another run is writing its corpus here; give each its own output.folder"
            ) from None
        except OSError:  # a file system without locks for folders
            pass
        yield
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a `.npy` file; unlike numpy.save, a full disk raises an error that says so."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.tobytes())


def temporary_for(path: Path) -> Path:
    """A name beside `path` that nobody can have guessed, for a file that is then renamed; open it with mode x."""
    return path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name}")


def read_array(path: Path) -> npt.NDArray[Any]:
    """A `.npy` file, without pickled objects."""
    return np.asarray(np.load(path, allow_pickle=False))

"""Write and check the files of a checkpoint: durable, with a SHA-256 each, and no link is followed."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from gpt.errors import MACHINE_FAULTS, ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular
from gpt.files.retry import retried
from parallel.errors import CheckpointError, CheckpointFault

T = TypeVar("T")


@dataclass(frozen=True)
class FileRecord:
    """Size and digest of one file."""

    size_bytes: int
    sha256: str


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> FileRecord:
    """Write a new file from pieces and fsync it. A second thread computes the digest while the disk is busy.

    Raises FileExistsError if anything has that name already, even a symbolic link; OSError when the disk refuses.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    with ThreadPoolExecutor(1) as pool, open(path, "xb") as file:
        for piece in pieces:
            hashed = pool.submit(digest.update, piece)
            size_bytes += file.write(piece)
            hashed.result()
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(size_bytes, digest.hexdigest())


def fsync_folder(path: Path) -> None:
    """Make the entries of a folder durable: new files and renames."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_file(path: Path, name: str, record: FileRecord) -> None:
    """Read one file of the checkpoint at `path`. CheckpointError if it is not as its record says."""
    sha256 = read_own(path, name, lambda file: hashlib.file_digest(file, "sha256").hexdigest(), record=record)  # type: ignore[arg-type]
    _compare(path, name, record, sha256)


def read_json(path: Path, name: str, record: FileRecord) -> dict[str, Any]:
    """Read one JSON file of a checkpoint. CheckpointError if it is not as its record says."""
    data = read_own(path, name, lambda file: file.read(), record=record)
    _compare(path, name, record, hashlib.sha256(data).hexdigest())
    return parse_json(path, name, data)


def read_own(path: Path, name: str, read: Callable[[BinaryIO], T], *, record: FileRecord | None = None) -> T:
    """Open a file of a checkpoint and `read` it, again after a fault of the disk that may pass.

    CheckpointError: it is missing, is not a regular file, or differs in size from its record. CheckpointFault: the disk
    refuses.
    """

    def once() -> T:
        with open_own(path, name) as file:
            found_bytes = os.fstat(file.fileno()).st_size
            if record is not None and found_bytes != record.size_bytes:
                raise CheckpointError(path, f"{name} has {found_bytes} bytes, the manifest says {record.size_bytes}")
            return read(file)

    try:
        return retried(once)
    except FileNotFoundError as error:
        raise CheckpointError(path, f"{name} is missing") from error
    except OSError as error:
        kind = CheckpointFault if error.errno in MACHINE_FAULTS else CheckpointError
        raise kind(path, f"{name} cannot be read: {error.strerror}") from error


def parse_json(path: Path, name: str, data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, the content of file `name`. CheckpointError if it is none."""
    try:
        body = decode_json(data)
    except ValueError as error:
        raise CheckpointError(path, f"{name} is damaged: no valid JSON") from error
    if not isinstance(body, dict):
        raise CheckpointError(path, f"{name} is damaged: no JSON object")
    return body


def open_own(path: Path, name: str) -> BinaryIO:
    """Open a file of a checkpoint. CheckpointError for a symbolic link, a pipe or a device; OSError otherwise."""
    try:
        return open_regular(path / name, follow_links=False)
    except OSError as error:
        if (path / name).is_symlink():
            raise CheckpointError(path, f"{name} is a symbolic link, which is not followed") from error
        raise
    except ConfigError as error:
        raise CheckpointError(path, f"{name} is no regular file") from error


def _compare(path: Path, name: str, record: FileRecord, sha256: str) -> None:
    if sha256 != record.sha256:
        raise CheckpointError(path, f"{name} is damaged: its SHA-256 is not the manifest's")

"""Append lines to files. While the disk is full they wait in memory, so that no line is cut short or lost."""

import os
from pathlib import Path
from typing import BinaryIO

from gpt.errors import NO_ROOM
from gpt.files.atomic import append_to

MAX_WAITING_BYTES = 16 << 20  # hours of a run's metrics


class LineFile:
    """A file of lines, created and opened by the first `add`.

    It is unbuffered, with one write per line: a crash of the process loses no line, and a reader sees whole lines
    unless the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._waiting = b""

    @property
    def is_waiting(self) -> bool:
        """Return whether some added bytes are not in the file yet. Each `add` tries again, also `add(b"")`."""
        return bool(self._waiting)

    def add(self, line: bytes) -> None:
        """Add a line, with its newline.

        OSError: any reason except a full disk, or the disk is full and too many bytes are waiting already.
        """
        self._waiting += line
        try:
            if self._file is None:
                self._file = append_to(self.path)
                if not _ends_with_newline(self._file):  # a process was killed before it could write the rest of a line
                    self._waiting = b"\n" + self._waiting
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if error.errno not in NO_ROOM or len(self._waiting) > MAX_WAITING_BYTES:
                raise

    def close(self) -> None:
        """Close the file and drop the bytes that still wait. A later `add` opens the file again."""
        if self._file is not None:
            self._file.close()
        self._file, self._waiting = None, b""


def _ends_with_newline(file: BinaryIO) -> bool:
    size = os.fstat(file.fileno()).st_size
    return size == 0 or os.pread(file.fileno(), 1, size - 1) == b"\n"

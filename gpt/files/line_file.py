"""Append lines to files. While the disk is full or fails, lines wait in memory: none is cut short or lost."""

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from gpt.errors import MACHINE_FAULTS, NO_ROOM
from gpt.files.atomic import append_to

MAX_WAITING_BYTES = 16 << 20  # hours of a run's metrics


class LineFile:
    """A file of lines, created and opened by the first `add`.

    It is unbuffered, with one write per line: a crash of the process loses no line, and a reader sees whole lines
    unless the disk is full. `is_text` False: records of bytes, which no newline may separate.
    """

    def __init__(self, path: Path, *, is_text: bool = True) -> None:
        self.path = path
        self._is_text = is_text
        self.error: OSError | None = None  # the last failure, while lines wait
        self._file: BinaryIO | None = None
        self.was_replaced = False  # since the first `add`, by an editor or a program that rotates logs
        # The inode, from the first `add` on. The device may change: a file server may be mounted again.
        self._inode: int | None = None
        self._waiting = b""

    @property
    def is_waiting(self) -> bool:
        """Return whether some added bytes are not in the file yet. Each `add` tries again, also `add(b"")`."""
        return bool(self._waiting)

    def add(self, line: bytes) -> None:
        """Add a line, with its newline.

        If someone has deleted, moved or replaced the file, it is opened again. FileNotFoundError: its folder is gone.
        OSError: an error other than a fault of the machine (such as a full disk), or too many bytes wait already.
        """
        self._waiting += line
        try:
            if self._inode is not None and self._inode != self._inode_at_path():
                self._close()
                self._inode, self.was_replaced = None, True
            if self._file is None:
                self._open()
            assert self._file is not None
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if error.errno not in MACHINE_FAULTS or len(self._waiting) > MAX_WAITING_BYTES:
                raise
            self.error = error
            if error.errno not in NO_ROOM:
                self._close()  # a file server that was restarted may no longer know the open file

    def close(self) -> None:
        """Close the file and drop the bytes that still wait. A later `add` opens the file again."""
        self._close()
        self._inode, self._waiting = None, b""

    def _open(self) -> None:
        self._file = append_to(self.path)
        found = os.fstat(self._file.fileno())
        if self._inode is None:
            # a process was killed before it could write the rest of a line
            if self._is_text and found.st_size and os.pread(self._file.fileno(), 1, found.st_size - 1) != b"\n":
                self._waiting = b"\n" + self._waiting
            self._inode = found.st_ino

    def _inode_at_path(self) -> int | None:
        try:
            return os.stat(self.path, follow_symlinks=False).st_ino
        except FileNotFoundError:
            return None

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None

"""Lines added to the ends of files; while the disk is full they wait in memory, and none is cut short or lost."""

import os
from pathlib import Path
from typing import BinaryIO

from gpt.errors import NO_ROOM
from gpt.files.atomic import append_to

MOST_WAITING = 16 << 20  # bytes: hours of a run's metrics


class LineFile:
    """Unbuffered: one write a line, so a crash of the process loses none, and a reader sees whole lines unless the disk
    is full. Opened, and made if it is not there, at the first `add`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._waiting = b""

    @property
    def is_waiting(self) -> bool:
        """Whether some of what was added is not in the file yet; each `add`, of nothing too, tries again."""
        return bool(self._waiting)

    def add(self, line: bytes) -> None:
        """Add a line, with its newline. OSError: what is not for want of room, or too much waits for it already."""
        self._waiting += line
        try:
            if self._file is None:
                self._file = append_to(self.path)
                if not _ends_with_a_line(self._file):  # a process was killed while the rest waited
                    self._waiting = b"\n" + self._waiting
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if error.errno not in NO_ROOM or len(self._waiting) > MOST_WAITING:
                raise

    def close(self) -> None:
        """What still waits is lost. A later `add` opens the file again."""
        if self._file is not None:
            self._file.close()
        self._file, self._waiting = None, b""


def _ends_with_a_line(file: BinaryIO) -> bool:
    size = os.fstat(file.fileno()).st_size
    return size == 0 or os.pread(file.fileno(), 1, size - 1) == b"\n"

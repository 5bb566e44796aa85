"""Lines added to the end of a file; while its disk is full they wait in memory, and none is cut short or lost."""

import errno
from pathlib import Path

from gpt.own_files import append_to

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
MOST_WAITING = 16 << 20  # bytes: hours of a run's metrics


class LineFile:
    """Open until `close`. Unbuffered: one write a line, so a crash of the process loses none, and a reader sees whole
    lines unless the disk is full. OSError: the file cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._file = append_to(path)
        self._waiting = b""

    @property
    def is_waiting(self) -> bool:
        """Whether some of what was added is not in the file yet; each `add` tries again."""
        return bool(self._waiting)

    def add(self, line: bytes) -> None:
        """Add a line, with its newline. OSError: what is not for want of room, or too much waits for it already."""
        self._waiting += line
        while self._waiting:
            try:
                written = self._file.write(self._waiting)
            except OSError as error:
                if error.errno in NO_ROOM and len(self._waiting) <= MOST_WAITING:
                    return
                raise
            self._waiting = self._waiting[written:]

    def close(self) -> None:
        """What still waits is lost."""
        self._file.close()

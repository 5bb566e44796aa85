"""The file of labels: JSON lines that several windows and processes append to. Every answer is on the disk at once.

A later line of the same labeller on the same text replaces the earlier one; an undone answer is such a line too.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpt.errors import ConfigError
from gpt.files.atomic import append_to, sync_folder
from gpt.files.json_text import decode_json

Labels = Mapping[str, int | None]


@dataclass(frozen=True)
class LabelAnswer:
    """The newest answer of a labeller on a text. `labels` is empty if the text was skipped."""

    text_id: str
    labeller: str
    labels: Labels
    severity: Mapping[str, int]
    seconds: float | None = None

    @property
    def is_skipped(self) -> bool:
        return not self.labels


class AnswerFile:
    """The answers in a file. Not for several threads at once: the caller has a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0  # lines that are no answer, such as the beginning of one that a loss of power cut short
        self.by_labeller: dict[str, dict[str, LabelAnswer]] = {}  # of each, by the id of the text, oldest first
        self._inode: int | None = None
        self._offset = 0

    @contextmanager
    def locked(self) -> Iterator[BinaryIO]:
        """Open the file, wait until no other process holds it, and read what others have added.

        OSError: the disk refuses. ConfigError: it is no regular file, or somebody has replaced it.
        """
        is_new = not self.path.exists()
        with append_to(self.path) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if is_new:
                sync_folder(self.path.parent)
            found = os.fstat(file.fileno())
            if found.st_size < self._offset or self._inode not in (None, found.st_ino):
                raise ConfigError(f"{self.path} was replaced while labels were added to it. Start the command again.")
            self._inode = found.st_ino
            self._read(os.pread(file.fileno(), found.st_size - self._offset, self._offset))
            yield file

    def append(self, file: BinaryIO, record: Mapping[str, Any]) -> None:
        """Add one line to the locked file and sync it. OSError: the disk refuses; then the file is as before."""
        size = os.fstat(file.fileno()).st_size
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        if size > self._offset:  # a process was killed before it could write the rest of a line
            line = b"\n" + line
        try:
            rest = line
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
        self._read(os.pread(file.fileno(), size + len(line) - self._offset, self._offset))

    def _read(self, data: bytes) -> None:
        """Take in whole lines; the rest stays for the next time."""
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            if line.strip():
                answer, is_undone = read_answer(line)
                if answer is None:
                    self.damaged += 1
                    continue
                mine = self.by_labeller.setdefault(answer.labeller, {})
                mine.pop(answer.text_id, None)  # so that the newest is the last
                if not is_undone:
                    mine[answer.text_id] = answer


def read_answer(line: bytes) -> tuple[LabelAnswer | None, bool]:
    """The answer of a line and whether it is undone; None if the line is no answer."""
    try:
        record = decode_json(line)
    except ValueError:
        return None, False
    return answer_of(record) if isinstance(record, dict) else (None, False)


def answer_of(record: Mapping[str, Any]) -> tuple[LabelAnswer | None, bool]:
    """As `read_answer`, of a record."""
    text_id, labeller, labels, seconds = (record.get(key) for key in ("id", "labeller", "labels", "seconds"))
    severity = record.get("severity") or {}
    if not (isinstance(text_id, str) and isinstance(labeller, str) and isinstance(labels, dict)):
        return None, False
    if not isinstance(severity, dict):
        return None, False
    known: dict[str, int | None] = {key: None if value is None else int(bool(value)) for key, value in labels.items()}
    grades = {key: value for key, value in severity.items() if type(value) is int}
    took = float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e9 else None
    return LabelAnswer(text_id, labeller, known, grades, took), record.get("undone") is True

"""What a work folder knows: one line for each finished task and each input read; never runs or judges a task.

Every writer has a file of its own, `manifest.jsonl` or a share's `manifest-2-of-8.jsonl`, and reads all of them. A line
that was cut off or damaged counts for nothing. Memory: about 0.7 kB a task, since lines stay in the files.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from data_prep.execution.files import disk_errors, sync_folder

MANIFEST = "manifest.jsonl"
_PATTERN = "manifest*.jsonl"

Entry = dict[str, Any]


class WorkManifest:
    """All manifests of a folder, read as they grow; `open_own` names the one that this process writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own: Path | None = None
        self._handle: int | None = None
        self._unsynced = False
        self._readers: dict[Path, IO[bytes]] = {}
        self._read_to: dict[Path, int] = {}
        self._positions: dict[bytes, tuple[Path, int, int]] = {}  # task key: file, offset and length of its last entry
        self._shared: set[str] = set()
        self._known: dict[str, tuple[int, int, str, Path]] = {}  # path: bytes, mtime_ns, digest, whose word it is

    def open_own(self, name: str) -> None:
        """Take `name` for the file to write, without what a run that died there left of a line. Hold its lock first."""
        self._own = self.folder / name
        if self._own.exists():
            with open(self._own, "rb+") as file:
                file.truncate(_whole_lines(file))

    def close(self) -> None:
        """Let go of the files."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def refresh(self) -> list[str]:
        """Read what was added since the last call, by whomever; the keys of tasks among it."""
        return [entry["key"] for path in sorted(self.folder.glob(_PATTERN)) for entry in self._read_on(path)]

    def entries(self) -> Iterator[Entry]:
        """Every entry of a task, in the order in which each file holds them, outdated ones included."""
        for path in sorted(self.folder.glob(_PATTERN)):
            with open(path, "rb") as file:
                for line in file:
                    entry = _parse(line)
                    if entry is not None and "key" in entry:
                        yield entry

    def entry(self, key: str) -> Entry | None:
        """The last entry of a task, or None."""
        position = self._positions.get(bytes.fromhex(key))
        if position is None:
            return None
        path, offset, length = position
        entry: Entry = json.loads(os.pread(self._reader(path).fileno(), length, offset))
        return entry

    def has(self, key: str) -> bool:
        """Whether there is an entry with this key."""
        return bytes.fromhex(key) in self._positions

    def has_shared(self, name: str) -> bool:
        """Whether there is a line of this name that says what several tasks have in common."""
        return name in self._shared

    def digest(self, path: Path) -> str | None:
        """Digest of a file's content if it is known for the file as it is now, by size and time of change."""
        known = self._known.get(str(path))
        if known is None:
            return None
        stat = path.stat()
        return known[2] if known[:2] == (stat.st_size, stat.st_mtime_ns) else None

    def n_bytes(self, path: Path) -> int | None:
        """Size of a file when it was last described, or None."""
        known = self._known.get(str(path))
        return None if known is None else known[0]

    def is_intact(self, entry: Entry) -> bool:
        """Whether the outputs of a task lie there as it left them, by size and time of change alone."""
        paths = [(self.folder / output["path"], output["digest"]) for output in entry["outputs"]]
        return all(path.is_file() and self.digest(path) == digest for path, digest in paths)

    def append(self, line: Entry) -> None:
        """Write a line for a task or a file. It outlives this process at once and the machine after `sync`."""
        assert self._own is not None
        data = json.dumps(line, sort_keys=True).encode() + b"\n"
        with disk_errors(self._own):
            if self._handle is None:
                self._handle = os.open(self._own, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                sync_folder(self.folder)
            _write_whole(self._handle, data)
        self._unsynced = True
        self._take(self._own, line, offset=os.fstat(self._handle).st_size - len(data), length=len(data))
        self._read_to[self._own] = os.fstat(self._handle).st_size

    def sync(self) -> None:
        """Make what was appended outlive the machine."""
        if self._handle is not None and self._unsynced:
            with disk_errors(self.folder):
                os.fsync(self._handle)
            self._unsynced = False

    def _read_on(self, path: Path) -> Iterator[Entry]:
        offset = self._read_to.get(path, 0)
        with open(path, "rb") as file:  # opened anew, which makes a network file system look at the server
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):  # its writer is in the middle of it, or died there
                    break
                entry = _parse(line)
                if entry is not None:
                    self._take(path, entry, offset=offset, length=len(line))
                    if "key" in entry:
                        yield entry
                offset += len(line)
                self._read_to[path] = offset

    def _take(self, path: Path, entry: Entry, *, offset: int, length: int) -> None:
        if "file" in entry:
            self._know(entry["file"]["path"], entry["file"], path)
        elif "of_tasks" in entry:
            self._shared.add(entry["of_tasks"])
        elif "key" in entry:
            self._positions[bytes.fromhex(entry["key"])] = (path, offset, length)
            for output in entry["outputs"]:
                self._know(str(self.folder / output["path"]), output, path)

    def _know(self, path: str, facts: Entry, writer: Path) -> None:
        """A writer's last word on a file holds, and of two writers' that on the newer file."""
        before = self._known.get(path)
        if before is None or before[3] == writer or before[1] <= facts["mtime_ns"]:
            self._known[path] = (facts["bytes"], facts["mtime_ns"], facts["digest"], writer)

    def _reader(self, path: Path) -> IO[bytes]:
        if path not in self._readers:
            self._readers[path] = open(path, "rb")  # noqa: SIM115  closed in `close`
        return self._readers[path]


def _parse(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
        if "key" in entry:
            bytes.fromhex(entry["key"])
            _check(entry["outputs"])
        elif "file" in entry:
            _check([entry["file"]])
    except (ValueError, KeyError, TypeError):  # damaged: that task is done again
        return None
    return entry if isinstance(entry, dict) else None


def _check(files: Sequence[Entry]) -> None:
    for facts in files:
        for name in ("path", "bytes", "mtime_ns", "digest"):
            facts[name]


def _whole_lines(file: IO[bytes]) -> int:
    """Size of the file without an unfinished last line."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        cut = file.read(end - start).rfind(b"\n")
        if cut >= 0:
            return start + cut + 1
        end = start
    return size if size == 0 else 0


def _write_whole(handle: int, data: bytes) -> None:
    """All of it. A full disk takes a part of a line, which the next to write here cuts off."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]

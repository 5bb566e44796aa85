"""Read and write the manifest of a work folder: one line for each finished task and for each input that was read.

Every writer has a file of its own, `manifest.jsonl` or `manifest-2-of-8.jsonl` for a share, and reads all of them. A
line that is cut off or damaged is ignored. It takes about 0.7 kB of memory per task, because the lines stay in the
files.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from data_prep.execution.files import disk_errors
from gpt.files.atomic import sync_folder
from gpt.files.json_text import decode_json

MANIFEST = "manifest.jsonl"
_PATTERN = "manifest*.jsonl"

Entry = dict[str, Any]


class WorkManifest:
    """All manifest files of a folder, read as they grow; `open_own` names the one that this process writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own: Path | None = None
        self._handle: int | None = None
        self._unsynced = False
        self._readers: dict[Path, IO[bytes]] = {}
        self._read_to: dict[Path, int] = {}
        self._positions: dict[bytes, tuple[Path, int, int]] = {}  # task key: file, offset, length of its last entry
        self._shared: set[str] = set()
        self._known: dict[
            str, tuple[int, int, str, Path]
        ] = {}  # path: bytes, mtime_ns, digest, the manifest that says so
        self._removed: set[str] = set()  # files that may be missing

    def open_own(self, name: str) -> None:
        """Make `name` the file to write and remove an unfinished last line, left by a run that died. Needs its lock."""
        self._own = self.folder / name
        if self._own.exists():
            with open(self._own, "rb+") as file:
                file.truncate(_whole_lines(file))

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def refresh(self) -> None:
        """Read the lines that any writer has added since the last call."""
        for path in sorted(self.folder.glob(_PATTERN)):
            self._read_on(path)

    def entries(self) -> Iterator[Entry]:
        """Yield every entry of a task, outdated ones included, in the order of each file."""
        for path in sorted(self.folder.glob(_PATTERN)):
            with open(path, "rb") as file:
                for line in file:
                    entry = _parse(line)
                    if entry is not None and "key" in entry:
                        yield entry

    def entry(self, key: str) -> Entry | None:
        """Return the last entry of a task, or None."""
        position = self._positions.get(bytes.fromhex(key))
        if position is None:
            return None
        path, offset, length = position
        entry: Entry = decode_json(os.pread(self._reader(path).fileno(), length, offset))
        return entry

    def has_shared(self, name: str) -> bool:
        """Return whether a shared line, which holds what several tasks have in common, has this name."""
        return name in self._shared

    def digest(self, path: Path) -> str | None:
        """Digest of a file's content, if known for its present size and time of change; else None."""
        known = self._known.get(str(path))
        if known is None:
            return None
        try:
            stat = path.stat()
        except FileNotFoundError:
            return known[2] if str(path) in self._removed else None
        return known[2] if known[:2] == (stat.st_size, stat.st_mtime_ns) else None

    def recorded_digest(self, path: Path) -> str | None:
        """Digest of a file when it was last recorded, or None; the file is not looked at."""
        known = self._known.get(str(path))
        return None if known is None else known[2]

    def may_be_missing(self, path: Path) -> bool:
        """Return whether a finished task's output was removed to save space, and was not made again since."""
        return str(path) in self._removed

    def n_bytes(self, path: Path) -> int | None:
        """Size of a file when it was last recorded, or None."""
        known = self._known.get(str(path))
        return None if known is None else known[0]

    def is_intact(self, entry: Entry) -> bool:
        """Return whether a task's outputs are unchanged, judged by size and time of change alone."""
        paths = [(self.folder / output["path"], output["digest"]) for output in files_of(entry)]
        return all(self.digest(path) == digest for path, digest in paths)

    def append(self, line: Entry) -> None:
        """Append a line for a task or a file. It survives this process at once, a crash of the machine after `sync`."""
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
        """Make the appended lines survive a crash of the machine."""
        if self._handle is not None and self._unsynced:
            with disk_errors(self.folder):
                os.fsync(self._handle)
            self._unsynced = False

    def _read_on(self, path: Path) -> None:
        offset = self._read_to.get(path, 0)
        with open(path, "rb") as file:  # opening again makes a network file system ask its server
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):  # its writer is still writing it, or died there
                    break
                entry = _parse(line)
                if entry is not None:
                    self._take(path, entry, offset=offset, length=len(line))
                offset += len(line)
                self._read_to[path] = offset

    def _take(self, path: Path, entry: Entry, *, offset: int, length: int) -> None:
        if "file" in entry:
            self._know(entry["file"]["path"], entry["file"], path)
        elif "removed" in entry:
            self._removed.update(str(self.folder / name) for name in entry["removed"])
        elif "of_tasks" in entry:
            self._shared.add(entry["of_tasks"])
        elif "key" in entry:
            self._positions[bytes.fromhex(entry["key"])] = (path, offset, length)
            for output in files_of(entry):
                self._know(str(self.folder / output["path"]), output, path)

    def _know(self, path: str, facts: Entry, writer: Path) -> None:
        """Keep a writer's latest facts about a file; of two writers, the facts about the newer file."""
        before = self._known.get(path)
        if before is None or before[3] == writer or before[1] <= facts["mtime_ns"]:
            self._known[path] = (facts["bytes"], facts["mtime_ns"], facts["digest"], writer)
            self._removed.discard(path)

    def _reader(self, path: Path) -> IO[bytes]:
        if path not in self._readers:
            self._readers[path] = open(path, "rb")  # noqa: SIM115  closed in `close`
        return self._readers[path]


def files_of(entry: Entry) -> list[Entry]:
    """Return the files of a task's entry: its outputs, and its failed documents if there are any."""
    return [*entry["outputs"], *([entry["quarantine"]] if "quarantine" in entry else [])]


def _parse(line: bytes) -> Entry | None:
    try:
        entry = decode_json(line)
        if "key" in entry:
            bytes.fromhex(entry["key"])
            _check(files_of(entry))
        elif "file" in entry:
            _check([entry["file"]])
        elif "removed" in entry:
            entry["removed"] = [str(name) for name in entry["removed"]]
    except (ValueError, KeyError, TypeError):  # damaged: the task runs again
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
    """Write all of it. A full disk may take part of a line, which the next writer removes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]

"""Lock a work folder for one run, or for the shares of one run that work in parallel.

A run holds a lock, writes its status to a small file, and touches that file every few seconds. Shares on other machines
can therefore distinguish a slow share from a dead one, by their own clocks.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.execution.files import disk_errors
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json

HEARTBEAT_S = 5.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LOCK_TRIES_S = 0.4  # `--status` tests a lock by taking it for a moment


@dataclass(frozen=True)
class Share:
    """Number `number` of `count` runs that divide the tasks of each stage among them; numbers start at 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(
                f"share {self.number}/{self.count} is invalid: the number must lie between 1 and {self.count}"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Parse K/N, for example 3/8."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise ConfigError(f"share '{text}' is invalid: must be K/N, for example 3/8 for the third of eight")
        return cls(int(found[1]), int(found[2]))

    def owner(self, index: int) -> int:
        """Number of the share that does the task of this index; it does not depend on which tasks are finished."""
        return index % self.count + 1


@dataclass(frozen=True)
class RunStatus:
    """A run's own status. `state`: working, waiting, done or failed; `step` counts the stages of the run."""

    host: str
    pid: int
    started_at: str
    share: str | None
    state: str
    step: int
    stage: str
    tasks: str  # digest of the stage's task keys: equal for all shares of one run
    message: str

    @property
    def where(self) -> str:
        """Process and machine."""
        return f"pid {self.pid} on {self.host}"


@dataclass(frozen=True)
class ObservedRun:
    """A run as others see it: `is_running` by its lock; `quiet_s` since its last heartbeat, by the file's clock."""

    status: RunStatus
    is_running: bool
    quiet_s: float


class WorkFolderLock:
    """This process's lock on a work folder, from `acquire` to `release`, with its status and its heartbeat."""

    def __init__(self, folder: Path, share: Share | None) -> None:
        self.folder = folder
        self.share = share
        self._locks: list[int] = []
        self._stop = threading.Event()
        self._identity: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """Suffix in the names of this run's own files; empty for a run without shares."""
        return "" if self.share is None else _label(self.share.number, self.share.count)

    def acquire(self) -> None:
        """Lock the folder and start the heartbeat. ConfigError: another run has the lock; the message names it."""
        with disk_errors(self.folder):
            self._identity = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "share": None if self.share is None else str(self.share),
            }
            try:
                self._lock_all()
                self.write_status("working")
            except BaseException:
                self.release()
                raise
        threading.Thread(target=self._beat, daemon=True).start()

    def write_status(self, state: str, *, step: int = 0, stage: str = "", tasks: str = "", message: str = "") -> None:
        """Write what this run is doing, for other shares and for `--status`."""
        status = {**self._identity, "state": state, "step": step, "stage": stage, "tasks": tasks, "message": message}
        path = _status_path(self.folder, self.label)
        temporary = path.with_name(f"{path.name}.new")  # no other run writes it: we hold the lock
        with disk_errors(path):
            temporary.write_text(json.dumps(status), encoding="utf-8")
            os.replace(temporary, path)

    def release(self) -> None:
        """Release the lock and stop the heartbeat."""
        self._stop.set()
        for handle in self._locks:
            os.close(handle)
        self._locks.clear()

    def _beat(self) -> None:
        path = _status_path(self.folder, self.label)
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a file system may be unavailable for a moment
                os.utime(path)

    def _lock_all(self) -> None:
        alone = self.share is None
        self._take(self.folder / ".lock", exclusive=alone, what="another run is")
        if self.share is None:
            for path in self.folder.glob(".run-*-of-*.json"):  # of earlier shares
                path.unlink(missing_ok=True)
            return
        self._take(self.folder / f".lock{self.label}", exclusive=True, what=f"share {self.share} is already")
        for path in sorted(self.folder.glob(".lock-*-of-*")):
            other = _label_of(path)
            if other is not None and other[1] != self.share.count and _is_locked(path):
                raise ConfigError(
                    f"{self.folder}: share {other[0]}/{other[1]} is working in this folder, and this is share "
                    f"{self.share}; all shares of a run need the same N. Stop the others first"
                )

    def _take(self, path: Path, *, exclusive: bool, what: str) -> None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._locks.append(handle)
        deadline = time.monotonic() + _LOCK_TRIES_S
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    raise ConfigError(
                        f"{self.folder}: its file system supports no locks ({error.strerror}), so two runs could write "
                        "the same files. Choose another folder with output.work, or mount it with locks"
                    ) from None
                if not isinstance(error, BlockingIOError):
                    raise
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                holders = "; ".join(seen.status.where for seen in observe_runs(self.folder) if seen.is_running)
                raise ConfigError(
                    f"{self.folder}: {what} working in this folder ({holders or 'unknown to this machine'}). "
                    "Wait for it, or give this run its own output.work"
                ) from None
            return


class ShareWatch:
    """Watch the other shares while one waits for their tasks."""

    def __init__(self, lock: WorkFolderLock, *, timeout_s: float) -> None:
        assert lock.share is not None
        self._lock = lock
        self._share = lock.share
        self._timeout_s = timeout_s
        self._changed: dict[int, tuple[int, float]] = {}  # share: mtime of its status file, when we first saw it
        self._at_start = {number: self._mtime(number) for number in range(1, self._share.count + 1)}

    def check(self, numbers: Iterable[int], *, step: int, tasks: str) -> None:
        """Raise ConfigError if one of these shares has failed, has other tasks, or shows no life for too long."""
        for number in sorted(set(numbers)):
            mtime, now = self._mtime(number), time.monotonic()
            if self._changed.get(number, (-1, 0.0))[0] != mtime:
                self._changed[number] = (mtime, now)
            status = _read_status(_status_path(self._lock.folder, _label(number, self._share.count)))
            if status is not None and mtime != self._at_start[number]:
                self._check_status(number, status, step=step, tasks=tasks)
            if now - self._changed[number][1] > self._timeout_s:
                raise ConfigError(self._dead(number, status))

    def describe(self, numbers: Iterable[int]) -> str:
        """Name the shares for a line of progress, and mark those that do not run."""
        parts = []
        for number in sorted(set(numbers)):
            runs = _is_locked(self._lock.folder / f".lock{_label(number, self._share.count)}")
            parts.append(f"{number}/{self._share.count}{'' if runs else ' (not running)'}")
        return ", ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")

    def _check_status(self, number: int, status: RunStatus, *, step: int, tasks: str) -> None:
        name = f"share {number}/{self._share.count} ({status.where})"
        if status.state == "failed":
            raise ConfigError(f"{name} stopped in stage '{status.stage}': {status.message}; {self._again(number)}")
        if status.step == step and status.tasks and status.tasks != tasks:
            raise ConfigError(
                f"{name} has other tasks in stage '{status.stage}' than this share: recipe, input files, code or "
                "library versions differ. Start all shares with the same command from the same installation"
            )

    def _dead(self, number: int, status: RunStatus | None) -> str:
        since = f"for {self._timeout_s / 60:.3g} minutes"
        if status is None:
            said = f"has not been started {since}"
        else:
            said = f"has shown no sign of life {since} (last in stage '{status.stage}', {status.where})"
        return f"share {number}/{self._share.count} {said}, and its tasks are needed; {self._again(number)}"

    def _again(self, number: int) -> str:
        return (
            f"start it again with --share {number}/{self._share.count} (Slurm: scontrol requeue JOB_{number}), "
            "then this one; finished work is kept"
        )

    def _mtime(self, number: int) -> int:
        try:
            return _status_path(self._lock.folder, _label(number, self._share.count)).stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def observe_runs(folder: Path) -> list[ObservedRun]:
    """Return every run that has left its status in a folder, running or not; changes nothing there."""
    return list(_observe(folder))


def _observe(folder: Path) -> Iterator[ObservedRun]:
    for path in sorted(folder.glob(".run*.json")):
        status = _read_status(path)
        if status is None:
            continue
        lock = folder / path.name.replace(".run", ".lock", 1).removesuffix(".json")
        try:
            quiet_s = max(0.0, time.time() - path.stat().st_mtime)
        except FileNotFoundError:
            continue
        yield ObservedRun(status, _is_locked(lock), quiet_s)


def _read_status(path: Path) -> RunStatus | None:
    try:
        return RunStatus(**decode_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # missing, or written by another version of this program
        return None


def _status_path(folder: Path, label: str) -> Path:
    return folder / f".run{label}.json"


def _label(number: int, count: int) -> str:
    return f"-{number}-of-{count}"


def _label_of(path: Path) -> tuple[int, int] | None:
    found = re.search(r"-(\d+)-of-(\d+)$", path.name)
    return None if found is None else (int(found[1]), int(found[2]))


def _is_locked(path: Path) -> bool:
    """Return whether a process has the lock: try it for a moment, less long than `WorkFolderLock` tries."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False

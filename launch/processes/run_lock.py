"""Keeps a run directory for one job at a time, on one machine and across machines; never looks at what is in it.

On one machine a POSIX lock decides, which the kernel gives back however its owner ends. Where machines do not see each
other's locks (Lustre and NFS may be mounted so) the owner's record decides: it changes with every beat, and a reader
waits for a change instead of comparing two machines' clocks.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from gpt.errors import ConfigError
from gpt.files.atomic import append_to

LOCK, RECORD = ".lock", ".owner.json"
BEAT_S = 5.0
SILENT_S = 20.0  # a record unchanged for so long belongs to a job that is dead, or cut off from the files
PATIENCE_S = 1.0  # for a process on this machine that is just being killed
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Owner:
    """Who holds a run directory, in its own words; `beats` grows, and `running_s` is by the owner's own clock."""

    host: str
    machine: str  # what tells one kernel from another; host names repeat
    pid: int
    job_id: str | None
    token: str
    running_s: float = 0.0
    beats: int = 0

    @classmethod
    def here(cls, job_id: str | None) -> "Owner":
        host = socket.gethostname()
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
            return cls(host, boot, os.getpid(), job_id, secrets.token_hex(8))
        return cls(host, host, os.getpid(), job_id, secrets.token_hex(8))

    def __str__(self) -> str:
        job = f" (job {self.job_id})" if self.job_id else ""
        return f"process {self.pid} on {self.host}{job}, running for {_span(self.running_s)}"


@contextmanager
def hold(
    directory: Path, *, job_id: str | None = None, beat_s: float = BEAT_S, silent_s: float = SILENT_S
) -> Iterator[None]:
    """While inside, this process has the run directory, which is made if it is not there. One rank calls it.

    ConfigError at once when another process of this machine has it, or one of another machine whose record changes.
    One of another machine that left no word of its end is watched for `silent_s` seconds, then taken for dead.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run.directory = {directory} cannot be made: {error.strerror}; choose another with --run.directory"
        ) from None
    owner, record = Owner.here(job_id), directory / RECORD
    with append_to(directory / LOCK) as lock:  # closing it gives the lock back
        _take(directory, lock, owner, silent_s=silent_s)
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(directory, owner, ended, beat_s), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            if _is_ours(record, owner):
                record.unlink(missing_ok=True)


def _take(directory: Path, lock: BinaryIO, owner: Owner, *, silent_s: float) -> None:
    record = directory / RECORD
    gives_up_at = time.monotonic() + PATIENCE_S
    locked = _try_lock(lock)
    other = _read(record)
    while locked is False and (other is None or other.machine == owner.machine):
        if time.monotonic() > gives_up_at:
            raise _in_use(directory, other)
        time.sleep(0.05)
        locked, other = _try_lock(lock), _read(record)
    # With the lock, a record of this machine is a dead process's. Without (locks that the file server has not taken
    # back from a machine that died, or has none), and for other machines, only silence tells.
    doubtful = other is not None and not (locked and other.machine == owner.machine)
    if doubtful and _changes(record, silent_s=silent_s):
        raise _in_use(directory, _read(record))
    _write(record, owner)
    if doubtful:
        time.sleep(PATIENCE_S)  # two machines may both have found it silent: the last one to write has it
        if not _is_ours(record, owner):
            raise _in_use(directory, _read(record))


def _try_lock(lock: BinaryIO) -> bool | None:
    """Whether the lock is ours now; None where the file system has no locks."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _changes(record: Path, *, silent_s: float) -> bool:
    """Whether the record changes within `silent_s`; gone is silent too."""
    first = _read(record)
    print(
        f"triaxial: {record.parent} was left without a word by {first}; watching it for {silent_s:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    ends_at = time.monotonic() + silent_s
    while time.monotonic() < ends_at:
        time.sleep(min(0.5, silent_s / 10))
        now = _read(record)  # opened anew each time: that is when NFS asks its server
        if now is not None and now != first:
            return True
    return False


def _beat(directory: Path, owner: Owner, ended: threading.Event, beat_s: float) -> None:
    """Change the record until `ended`; when another job has taken it, end this process before it writes more."""
    record, started_at = directory / RECORD, time.monotonic()
    while not ended.wait(beat_s):
        other = _read(record)
        if other is not None and other.token != owner.token:
            print(
                f"triaxial: error: {directory} was taken by {other}, as this process had given no sign of life for "
                f"{SILENT_S:.0f} s; it ends without writing",
                file=sys.stderr,
                flush=True,
            )
            os._exit(ConfigError.exit_status)
        owner = replace(owner, running_s=time.monotonic() - started_at, beats=owner.beats + 1)
        with suppress(OSError):  # a full disk, perhaps: the lock still holds on this machine
            _write(record, owner)


def _write(record: Path, owner: Owner) -> None:
    partial = record.with_name(f"{RECORD}.{owner.token}")
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(json.dumps(asdict(owner)))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(record)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _read(record: Path) -> Owner | None:
    """The record, None when there is none or none that we can read."""
    try:
        return Owner(**json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_ours(record: Path, owner: Owner) -> bool:
    found = _read(record)
    return found is not None and found.token == owner.token


def _in_use(directory: Path, other: Owner | None) -> ConfigError:
    who = str(other) if other is not None else "another process, which has left no record yet"
    return ConfigError(f"{directory} is in use by {who}; stop it first, or choose another --run.directory")


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

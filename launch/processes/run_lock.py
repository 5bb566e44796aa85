"""Lock a run directory for one job at a time, on one machine and across machines.

On one machine a POSIX lock decides; the kernel releases it when its owner ends, for any reason. Lustre and NFS may be
mounted so that machines do not see each other's locks. Then the owner's record decides: the owner rewrites it at every
heartbeat, and a reader waits for a change, because the clocks of two machines cannot be compared.
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
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from gpt.errors import ConfigError, file_error, one_line
from gpt.files.atomic import append_to, open_replacement, sync_file
from gpt.files.json_rules import Fields, Finite, Text, Whole, read_checked_json
from gpt.files.machine import boot_id

LOCK, RECORD = ".lock", ".owner.json"
BEAT_S = 5.0
SILENT_S = 20.0  # the owner of a record unchanged for this long is dead, or cut off from the file system
PATIENCE_S = 1.0  # wait this long for a process of this machine that is just being killed
_OWNER = Fields(
    {
        **{key: Text(1000) for key in ("host", "machine", "token")},
        **{"pid": Whole(), "job_id": Text(1000, none=True), "running_s": Finite(0.0), "beats": Whole()},
    }
)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Owner:
    """The owner of a run directory, as it wrote itself. `beats` grows; `running_s` is by the owner's clock."""

    host: str
    machine: str  # the kernel's boot id: host names may repeat
    pid: int
    job_id: str | None
    token: str
    running_s: float = 0.0
    beats: int = 0

    @classmethod
    def here(cls, job_id: str | None) -> "Owner":
        host = socket.gethostname()
        return cls(host, boot_id() or host, os.getpid(), job_id, secrets.token_hex(8))

    def __str__(self) -> str:
        job = f" (job {self.job_id})" if self.job_id else ""
        return one_line(f"process {self.pid} on {self.host}{job}, running for {_span(self.running_s)}")


def lock(
    held: ExitStack, directory: Path, *, job_id: str | None = None, beat_s: float = BEAT_S, silent_s: float = SILENT_S
) -> None:
    """Lock the run directory until `held` closes, and create it if it does not exist. One rank calls it.

    Another thread may close `held` at any moment, also while this waits: then nothing of the lock is left.

    ConfigError if another process of this machine has it, or a job of another machine whose record changes. If such a
    record does not change for `silent_s` seconds, its owner is considered dead.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(
            error,
            f"run.directory = {directory} cannot be created: {error.strerror}. Choose another with --run.directory",
        ) from None
    owner, record = Owner.here(job_id), directory / RECORD
    ended, writing = threading.Event(), threading.Lock()
    beating = threading.Thread(target=_beat, args=(directory, owner, ended, beat_s), daemon=True)

    def write() -> None:
        with writing:
            if not ended.is_set():
                _write(record, owner)

    def release() -> None:
        ended.set()
        if beating.is_alive():
            beating.join()
        with writing:
            if _is_ours(record, owner):
                record.unlink(missing_ok=True)

    lock_file = held.enter_context(append_to(directory / LOCK))  # closing it releases the lock
    held.callback(release)
    _take(directory, lock_file, owner, write, silent_s=silent_s)
    beating.start()


def _take(directory: Path, lock_file: BinaryIO, owner: Owner, write: Callable[[], None], *, silent_s: float) -> None:
    record = directory / RECORD
    gives_up_at = time.monotonic() + PATIENCE_S
    locked = _try_lock(lock_file)
    other = _read(record)
    while locked is False and (other is None or other.machine == owner.machine):
        if time.monotonic() > gives_up_at:
            raise _in_use(directory, other)
        time.sleep(0.05)
        locked, other = _try_lock(lock_file), _read(record)
    # If we have the lock, a record of this machine belongs to a dead process. In two cases only silence shows that its
    # owner is dead: the record is another machine's, or we have no lock. The file server may support no locks, or may
    # not have released the lock of a machine that died.
    doubtful = other is not None and not (locked and other.machine == owner.machine)
    if doubtful and _changes(record, silent_s=silent_s):
        raise _in_use(directory, _read(record))
    write()
    if other is not None and other.token.isalnum():
        with suppress(OSError):
            _partial(record, other.token).unlink()  # it was killed during a beat
    if doubtful:
        time.sleep(PATIENCE_S)  # two machines may both have found it silent: the last one to write wins
        if not _is_ours(record, owner):
            raise _in_use(directory, _read(record))


def _try_lock(lock_file: BinaryIO) -> bool | None:
    """True if the lock is ours now; None if the file system has no locks."""
    try:
        fcntl.lockf(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _changes(record: Path, *, silent_s: float) -> bool:
    """True if the record changes within `silent_s` seconds. A deleted record counts as unchanged."""
    first = _read(record)
    print(
        f"triaxial: {record.parent} was last used by {first}; watching it for {silent_s:.0f} s for a sign of life",
        file=sys.stderr,
        flush=True,
    )
    ends_at = time.monotonic() + silent_s
    while time.monotonic() < ends_at:
        time.sleep(min(0.5, silent_s / 10))
        now = _read(record)  # opens the file each time: only then does NFS ask its server
        if now is not None and now != first:
            return True
    return False


def _beat(directory: Path, owner: Owner, ended: threading.Event, beat_s: float) -> None:
    """Rewrite the record until `ended`. If another job has taken it, end this process before it writes more."""
    record, started_at = directory / RECORD, time.monotonic()
    while not ended.wait(beat_s):
        other = _read(record)
        if other is not None and other.token != owner.token:
            print(
                f"triaxial: error: {directory} was taken by {other}, because this process showed no sign of life for "
                f"{SILENT_S:.0f} s; it ends without writing",
                file=sys.stderr,
                flush=True,
            )
            os._exit(ConfigError.exit_status)
        owner = replace(owner, running_s=time.monotonic() - started_at, beats=owner.beats + 1)
        with suppress(OSError, ConfigError):  # a full disk, or a folder there: on this machine the lock still protects
            _write(record, owner)


def _write(record: Path, owner: Owner) -> None:
    """Write the record. Only the first write syncs the folder, since a server feels a sync at every beat."""
    partial = _partial(record, owner.token)
    partial.unlink(missing_ok=True)  # the disk may have refused to delete it
    with open_replacement(record, durable=owner.beats == 0, temporary=partial) as file:
        file.write(json.dumps(asdict(owner)).encode())
        sync_file(file)


def _partial(record: Path, token: str) -> Path:
    """Return where an owner writes its record first. The next owner finds it by the token in the record."""
    return record.with_name(f"{record.name}.{token}")


def _read(record: Path) -> Owner | None:
    """The record; None if it does not exist or has another format."""
    try:
        table = read_checked_json(record, _OWNER, max_bytes=1 << 16)
    except (OSError, ConfigError):
        return None
    return Owner(**{key: table[key] for key in _OWNER.required})


def _is_ours(record: Path, owner: Owner) -> bool:
    found = _read(record)
    return found is not None and found.token == owner.token


def _in_use(directory: Path, other: Owner | None) -> ConfigError:
    who = str(other) if other is not None else "another process, which has written no record yet"
    return ConfigError(f"{directory} is in use by {who}. Stop it first, or choose another --run.directory")


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

"""Own standard output and standard error, so that a process does not depend on who reads them.

A long run inherits descriptors that may be closed, broken, on a full disk, or a pipe that nobody reads any more. Every
`print` of a process that called `own_output` goes through the streams here.
"""

import errno
import io
import os
import select
import stat
import sys
import time
from contextlib import suppress
from typing import Any

from gpt.errors import NO_ROOM, ConfigError

PATIENCE_S = 1.0  # wait this long for a slow reader, then drop output until it reads again
WAITING_SHARE = 0.01  # the largest share of the time that waiting for a reader may cost in the long run


class OutputError(ConfigError):
    """Standard output cannot be written. `is_closed`: its reader has ended, as `head` does."""

    exit_status = 1

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written: {_reason(error)}")
        self.is_closed = error.errno == errno.EPIPE


def own_output(*, waits: bool) -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams for this process. A stream that a program has set is kept.

    `waits`: writing waits for the reader, and OutputError says that standard output failed. Without it, writing never
    raises: output that cannot be written, or that nobody reads, is dropped, and the next output says how much. Then
    C libraries and child processes do not wait either. Closed descriptors are opened on /dev/null in both cases: else
    the next file that the process opens would become its standard error.
    """
    _open_closed()
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if _descriptor(stream) != fd:
            continue
        with suppress(OSError, ConfigError):
            stream.flush()
        if not waits:
            _stop_blocking(fd)
        lines = not waits or fd == 2 or os.isatty(fd)
        errors = "backslashreplace"  # a letter that the terminal lacks must not end the process
        raw = _Output(fd, waits=waits)
        setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=lines))  # type: ignore[type-var]


class _Output(io.RawIOBase):
    """A descriptor whose output is written immediately, or dropped."""

    def __init__(self, fd: int, *, waits: bool) -> None:
        self._fd, self._waits = fd, waits
        self._patience_s, self._asked_at = PATIENCE_S, time.monotonic()
        self._dropped_bytes = 0
        self._has_failed = False  # and the user knows it

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write the bytes, or drop them. Return their number in any case."""
        left = memoryview(data).cast("B")
        try:
            if self._dropped_bytes and self._is_ready(0.0):
                note = f"\ntriaxial: {self._dropped_bytes:,} bytes of output were dropped: nobody read them\n"
                self._dropped_bytes = 0
                os.write(self._fd, note.encode())
            while left and (self._waits or self._is_ready(self._patience_s)):
                try:  # a ready pipe takes PIPE_BUF bytes, unless another process is faster
                    left = left[os.write(self._fd, left if self._waits else left[: select.PIPE_BUF]) :]
                except BlockingIOError:
                    if self._waits:  # another process has set the descriptor it shares with us to non-blocking
                        _poll(self._fd, None)
        except OSError as error:
            self._fail(error)
        else:
            self._dropped_bytes += len(left)
        return memoryview(data).nbytes

    def _is_ready(self, wait_s: float) -> bool:
        """Wait for a reader. The patience that this costs grows again with time, by WAITING_SHARE of it."""
        asked_at = time.monotonic()
        earned_s = WAITING_SHARE * (asked_at - self._asked_at)
        is_ready = _poll(self._fd, wait_s)
        self._asked_at = time.monotonic()
        self._patience_s = min(PATIENCE_S, max(0.0, self._patience_s + earned_s - (self._asked_at - asked_at)))
        return is_ready

    def _fail(self, error: OSError) -> None:
        """Drop the output. If the descriptor has failed for good, replace it by /dev/null.

        This holds for C libraries too, which SIGPIPE might end otherwise.
        """
        if error.errno not in NO_ROOM:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._fd)
                os.close(nowhere)
        if self._fd == 2 or self._has_failed:
            return
        self._has_failed = True
        if self._waits:
            raise OutputError(error)
        print(
            f"triaxial: standard output cannot be written ({_reason(error)}); the run continues, see its directory",
            file=sys.stderr,
            flush=True,
        )


def _poll(fd: int, wait_s: float | None) -> bool:
    """Return whether a descriptor takes bytes, or has failed, within a time. None waits without a limit."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(None if wait_s is None else 1000 * wait_s))


def _open_closed() -> None:
    """Open /dev/null for each standard stream whose descriptor was closed when the process started."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        nowhere = os.open(os.devnull, os.O_RDWR)
        if not _is_open(fd):
            os.dup2(nowhere, fd)
            os.close(nowhere)
        elif nowhere == fd:
            os.set_inheritable(fd, True)
        used = nowhere if _is_open(nowhere) else fd  # `fd` itself may be another file by now
        setattr(sys, name, os.fdopen(used, "w" if fd else "r", encoding="utf-8", closefd=False))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _stop_blocking(fd: int) -> None:
    """Open the pipe or terminal at `fd` again, without blocking, for this process and its children only."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd):
        # another user's pipe, or no /proc: `write` checks for space before it writes, which is almost as good
        with suppress(OSError):
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.dup2(own, fd)
            os.close(own)


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()

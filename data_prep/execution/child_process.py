"""Child processes of a worker that may die or be killed at any time: starts them, talks to them, ends them.

A child runs one module of data_prep in a clean interpreter. Not multiprocessing, whose workers may have no children of
their own, and which would run the main module again.
"""

import contextlib
import fcntl
import json
import os
import resource
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpt.errors import ConfigError

# Our search path without running `site`: so a child starts in 25 ms of processor time.
_START = (
    "import sys, json, runpy; sys.path[:] = json.loads(sys.argv[1]); runpy.run_module(sys.argv[2], run_name='__main__')"
)


_START_LIMIT_S = 120  # for its imports, on a file system that is slow today


_GRACE_S = 2.0  # for a child whose input has ended


_PIPE_BYTES, _READ = 1 << 20, 1 << 18


@dataclass(frozen=True)
class Ending:
    """How a child ended: its status as subprocess gives it, its peak memory, whether it had to be killed."""

    code: int
    max_rss_bytes: int
    stuck: bool


class Child:
    """One child process, which runs `module` and has got `facts` as its first message."""

    def __init__(self, module: str, facts: dict[str, Any]) -> None:
        paths = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, json.dumps(paths), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # panics of libraries, which the reason of a drop tells shorter
            start_new_session=True,  # Ctrl-C is for the worker, which ends the child
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._received = bytearray()
        for pipe in (self._input, self._output):
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                with contextlib.suppress(OSError):  # over the user's quota: it only saves switches between the two
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        text = json.dumps(facts).encode()
        self.send([SIZE.pack(len(text)), text])
        answer = self.receive(_START_LIMIT_S)
        if answer is None or answer[0] != READY:
            code = self.end().code
            if answer is not None and answer[0] == MISTAKE:
                raise ConfigError(answer[1])
            raise RuntimeError(f"the child process {module} did not start (status {code})")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, pieces: Iterable[bytes]) -> None:
        """Write to its input; if it is dead, `receive` will tell."""
        with contextlib.suppress(BrokenPipeError):
            for piece in pieces:
                self._input.write(piece)
            self._input.flush()

    def receive(self, limit_s: float) -> tuple[int, str] | None:
        """Its next frame; None when it is dead, or silent for `limit_s`."""
        deadline = time.monotonic() + limit_s
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        while True:
            if len(self._received) >= REPLY.size:
                kind, n_bytes = REPLY.unpack_from(self._received)
                end = REPLY.size + n_bytes
                if len(self._received) >= end:
                    text = self._received[REPLY.size : end].decode()
                    del self._received[:end]
                    return kind, text
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                return None
            block = os.read(self._output.fileno(), _READ)
            if not block:
                return None
            self._received += block

    def end(self) -> Ending:
        """Make sure that it ends: it does when its input does, unless it is stuck."""
        with contextlib.suppress(BrokenPipeError):  # what was still to be written to a dead child
            self._input.close()
        self._output.close()
        ended = _wait(self._process.pid, _GRACE_S)
        stuck = ended is None
        if ended is None:
            self._process.kill()
            ended = os.wait4(self._process.pid, 0)[1:]
        self._process.returncode = os.waitstatus_to_exitcode(ended[0])
        return Ending(self._process.returncode, ended[1].ru_maxrss * 1024, stuck)


def _wait(pid: int, limit_s: float) -> tuple[int, Any] | None:
    """(wait status, resource usage) of a child that ends within the limit, else None."""
    deadline = time.monotonic() + limit_s
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return status, usage
        if time.monotonic() > deadline:
            return None
        time.sleep(0.002)


READY, MISTAKE, TEXT, END, FAILED, OUT_OF_MEMORY, CRASHED = range(7)  # what a frame from a child says


REPLY = struct.Struct("<BI")  # one of these, bytes of text after it


SIZE = struct.Struct("<I")


def read_exactly(requests: BinaryIO, n_bytes: int) -> bytes:
    """The next bytes from the worker; the child ends when there are none any more."""
    data = requests.read(n_bytes)
    if len(data) < n_bytes:
        sys.exit()
    return data


def read_text(requests: BinaryIO) -> str:
    """The next sized piece of text from the worker."""
    return read_exactly(requests, SIZE.unpack(read_exactly(requests, SIZE.size))[0]).decode()


def reply(replies: BinaryIO, kind: int, text: str = "") -> None:
    """A frame to the worker; the child ends when it is gone."""
    data = text.encode("utf-8", "replace")
    try:
        replies.write(REPLY.pack(kind, len(data)) + data)
        replies.flush()
    except BrokenPipeError:
        sys.exit()


def limit_memory(n_bytes: int) -> None:
    """Let this process grow to `n_bytes` of resident memory: address space beyond what is mapped and not in use now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux: nothing to reckon with, and no limit that would hold
        return
    mapped, resident = (int(pages) * resource.getpagesize() for pages in statm.read_text().split()[:2])
    limit = mapped - resident + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

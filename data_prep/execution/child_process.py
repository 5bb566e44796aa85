"""Start, use and end child processes of a worker; a child may die or be killed at any time.

A child runs one module of data_prep in a clean interpreter. multiprocessing does not fit: its workers may have no
children of their own, and it would run the main module again.
"""

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.execution.child_frames import MISTAKE, READY, REPLY, SIZE
from gpt.errors import ConfigError

# Set our search path without running `site`: a child then starts in 25 ms of processor time.
_START = (
    "import sys, json, runpy; sys.path[:] = json.loads(sys.argv[1]); runpy.run_module(sys.argv[2], run_name='__main__')"
)
_ROOT = Path(__file__).parents[2]  # the folder that holds data_prep and gpt
_START_LIMIT_S = 120  # for its imports, on a slow file system
_GRACE_S = 2.0  # for a child whose input has ended
_PIPE_BYTES, _READ_BYTES = 1 << 20, 1 << 18


@dataclass(frozen=True)
class ChildExit:
    """The end of a child: its status as subprocess gives it, its peak memory, whether it had to be killed."""

    code: int
    max_rss_bytes: int
    stuck: bool


class Child:
    """One child process, which runs `module` and has received `facts` as its first message.

    ConfigError: the child reports a mistake of the user at its start.
    """

    def __init__(self, module: str, facts: dict[str, Any]) -> None:
        paths = [str(_ROOT), *filter(None, sys.path)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, json.dumps(paths), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # panics of libraries; the reason of a drop has a short form
            start_new_session=True,  # Ctrl-C goes to the worker, which ends the child
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._received = bytearray()
        for pipe in (self._input, self._output):
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                with contextlib.suppress(OSError):  # over the user's quota; a large pipe only saves task switches
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

    def send(self, blocks: Iterable[bytes]) -> None:
        """Write to its input; if the child is dead, `receive` returns None."""
        with contextlib.suppress(BrokenPipeError):
            for block in blocks:
                self._input.write(block)
            self._input.flush()

    def receive(self, limit_s: float) -> tuple[int, str] | None:
        """Return its next frame (kind, text); None if it is dead, or silent for `limit_s`."""
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
            block = os.read(self._output.fileno(), _READ_BYTES)
            if not block:
                return None
            self._received += block

    def end(self) -> ChildExit:
        """End the child by closing its input, or kill it if it is stuck."""
        with contextlib.suppress(BrokenPipeError):  # the rest of what a dead child should have received
            self._input.close()
        self._output.close()
        ended = _wait(self._process.pid, _GRACE_S)
        stuck = ended is None
        if ended is None:
            self._process.kill()
            ended = os.wait4(self._process.pid, 0)[1:]
        self._process.returncode = os.waitstatus_to_exitcode(ended[0])
        return ChildExit(self._process.returncode, ended[1].ru_maxrss * 1024, stuck)


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

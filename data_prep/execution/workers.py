"""Run jobs on worker processes of this machine and notice at once when a worker dies."""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpt.errors import ConfigError, MachineFault, passing_fault

_ATTEMPTS = 2  # one kill may be chance (memory pressure, an operator); two on the same job are not


@dataclass(frozen=True)
class RunningJob:
    """A job that a worker is doing: its name in errors, its time so far, and its worker."""

    name: str
    elapsed_s: float
    where: str


class Executor(Protocol):
    """Does a workspace's tasks: with processes of this machine, or with those of a Ray cluster."""

    def run(
        self, function: Callable[[Any], Any], jobs: Sequence[Any], *, name: Callable[[Any], str]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index of the job, function(job)) as jobs finish, each job once, even if workers die meanwhile.

        ConfigError: from the function, or a job's worker dies repeatedly. RuntimeError: any other exception in the
        function, with its traceback. `name` gives the name of a job in errors.
        """
        ...

    def longest(self) -> RunningJob | None:
        """Return the job that has run longest, or None; may be called from another thread."""
        ...

    def close(self) -> None:
        """End the workers, even in the middle of a job."""
        ...


@dataclass
class _Worker:
    process: Any
    connection: Any
    watch: int | None  # a descriptor that becomes ready when the process dies
    job: int | None = None
    name: str = ""
    started: float = 0.0


class LocalWorkers:
    """A set of worker processes, started with the first job and kept until `close`.

    multiprocessing.Pool would not do: it waits without end for the result of a worker that was killed. The processes
    are spawned and share nothing with the caller. On Linux the kernel kills them when the caller dies.
    `n_workers`: None for one per core.
    """

    def __init__(self, n_workers: int | None) -> None:
        if n_workers is not None and n_workers < 1:
            raise ConfigError(f"workers = {n_workers} is invalid: must be at least 1")
        self.n_workers = n_workers or len(os.sched_getaffinity(0))
        self._workers: list[_Worker] = []
        self._context = multiprocessing.get_context("spawn")

    def run(
        self, function: Callable[[Any], Any], jobs: Sequence[Any], *, name: Callable[[Any], str] = str
    ) -> Iterator[tuple[int, Any]]:
        """As `Executor.run`; `function` must be importable by name. A job whose worker died runs once more."""
        waiting = deque(range(len(jobs)))
        attempts: dict[int, int] = {}  # of the jobs that lost a worker
        while waiting or any(worker.job is not None for worker in self._workers):
            self._start(min(self.n_workers, len(jobs)))
            for worker in self._workers:
                if worker.job is None and waiting:
                    index = waiting.popleft()
                    worker.job, worker.name, worker.started = index, name(jobs[index]), time.monotonic()
                    self._send(worker, (function, jobs[index]))
            for worker, outcome in self._wait():
                done, worker.job = worker.job, None
                assert done is not None
                if outcome is None:
                    attempts[done] = attempts.get(done, 0) + 1
                    self._bury(worker, final=attempts[done] == _ATTEMPTS)
                    waiting.appendleft(done)
                else:
                    yield done, unwrap(outcome)

    def longest(self) -> RunningJob | None:
        """As `Executor.longest`."""
        busy = [worker for worker in list(self._workers) if worker.job is not None]
        if not busy:
            return None
        worker = min(busy, key=lambda worker: worker.started)
        return RunningJob(worker.name, time.monotonic() - worker.started, f"pid {worker.process.pid}")

    def close(self) -> None:
        """End the workers, even in the middle of a job."""
        for worker in self._workers:
            worker.connection.close()
            if worker.job is None:
                worker.process.join(timeout=5)
            worker.process.kill()
        for worker in self._workers:
            self._reap(worker)
        self._workers.clear()

    def _start(self, n: int) -> None:
        """Start workers until there are `n`; replacing one that died while idle costs no job an attempt."""
        for worker in [w for w in self._workers if w.job is None and not w.process.is_alive()]:
            worker.connection.close()
            self._reap(worker)
            self._workers.remove(worker)
        while len(self._workers) < n:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours, _watch(process.pid)))

    def _send(self, worker: _Worker, message: Any) -> None:
        try:
            worker.connection.send(message)
        except OSError:
            worker.connection.close()  # it died while idle; _wait notices

    def _wait(self) -> list[tuple[_Worker, Any]]:
        """Return the busy workers that have answered, with the answer; None for a worker that died."""
        busy = [worker for worker in self._workers if worker.job is not None]
        closed = [worker for worker in busy if worker.connection.closed]
        if closed:
            return [(worker, None) for worker in closed]
        watched = [_death(worker) for worker in busy]
        ready = multiprocessing.connection.wait([*(worker.connection for worker in busy), *watched])
        found = []
        for worker, death in zip(busy, watched, strict=True):
            if death in ready:
                _end_of_stream(worker.connection)  # so that we do not wait for the rest of an incomplete answer
            if death in ready or worker.connection in ready:
                found.append((worker, _receive(worker.connection)))
        return found

    def _bury(self, worker: _Worker, *, final: bool) -> None:
        worker.connection.close()
        worker.process.kill()
        self._reap(worker)
        self._workers.remove(worker)
        code = worker.process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
        if final:
            raise ConfigError(
                f"{worker.name}: its worker {how}, twice; if memory ran out, use fewer workers (now {self.n_workers}) "
                "or smaller input files"
            )

    def _reap(self, worker: _Worker) -> None:
        worker.process.join()
        if worker.watch is not None:
            os.close(worker.watch)


def _watch(pid: int | None) -> int | None:
    """Open a descriptor that reports a process's death. The pipe cannot: a child of the worker may keep it open."""
    assert pid is not None
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # another system, or a kernel before 5.3
        return None


def _death(worker: _Worker) -> Any:
    return worker.process.sentinel if worker.watch is None else worker.watch


def _end_of_stream(connection: Any) -> None:
    """Make `connection` end after the data it already holds, even if another process has the other end open."""
    if connection.closed:
        return
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RD)


def _receive(connection: Any) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def unwrap(outcome: tuple[str, Any]) -> Any:
    """Return the value in an `answer`, or raise the exception that it describes."""
    kind, value = outcome
    if kind == "mistake":
        raise ConfigError(value)
    if kind == "fault":
        raise MachineFault(value)
    if kind == "error":
        raise RuntimeError(f"a worker failed:\n{value}")
    return value


def _serve(connection: Any, owner_pid: int) -> None:
    """Take jobs and send answers until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides who ends
    _die_with(owner_pid)
    while True:
        try:
            function, job = connection.recv()  # also raises the errors of importing the function
        except (EOFError, OSError):
            return
        except Exception:
            outcome: tuple[str, Any] = ("error", traceback.format_exc())
        else:
            outcome = answer(function, job)
        try:
            connection.send(outcome)
        except OSError:
            return


def _die_with(owner_pid: int) -> None:
    """Make the kernel kill this process with its owner, even in a job. Not on Linux: it ends after its job."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, from linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != owner_pid:
            os._exit(1)  # the owner ended before the call above


def answer(function: Callable[[Any], Any], job: Any) -> tuple[str, Any]:
    """Call it; return ("done", its value), ("mistake" or "fault", a ConfigError's line) or ("error", a traceback)."""
    try:
        return "done", function(job)
    except ConfigError as error:
        return "fault" if isinstance(error, MachineFault) else "mistake", str(error)
    except Exception as error:
        fault = passing_fault(error)
        return ("error", traceback.format_exc()) if fault is None else ("fault", str(fault))

"""Runs jobs on worker processes of this machine and notices at once when one dies; knows nothing of stages or files."""

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

from gpt.errors import ConfigError

_ATTEMPTS = 2  # a worker may be killed by chance (memory pressure, an operator); twice on the same job is no chance


@dataclass(frozen=True)
class RunningJob:
    """A job that is being done: what errors call it, for how long, and by whom."""

    name: str
    elapsed_s: float
    where: str


class Executor(Protocol):
    """What does a workspace's tasks: the processes of this machine, or those of a Ray cluster."""

    def run(
        self, function: Callable[[Any], Any], jobs: Sequence[Any], *, name: Callable[[Any], str]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index of the job, function(job)) as jobs finish, each job once, also when a worker dies in between.

        ConfigError: from the function, or when a job's worker dies again and again. RuntimeError: any other exception
        in the function, with its traceback. `name` gives what errors call a job.
        """
        ...

    def longest(self) -> RunningJob | None:
        """The job that has run for the longest time; may be called from another thread."""
        ...

    def close(self) -> None:
        """End the workers, also those in the middle of a job."""
        ...


@dataclass
class _Worker:
    process: Any
    connection: Any
    watch: int | None  # a descriptor that becomes ready when the process is dead
    job: int | None = None
    name: str = ""
    started: float = 0.0


class LocalWorkers:
    """A set of worker processes, started when the first job comes and kept until `close`.

    Not multiprocessing.Pool, which waits for ever for the result of a worker that was killed. The processes are
    spawned, so that they share nothing with the caller, and on Linux the kernel kills them when it dies.
    `n_workers`: None for one a core.
    """

    def __init__(self, n_workers: int | None) -> None:
        if n_workers is not None and n_workers < 1:
            raise ConfigError(f"workers = {n_workers} must be at least 1")
        self.n_workers = n_workers or len(os.sched_getaffinity(0))
        self._workers: list[_Worker] = []
        self._context = multiprocessing.get_context("spawn")

    def run(
        self, function: Callable[[Any], Any], jobs: Sequence[Any], *, name: Callable[[Any], str] = str
    ) -> Iterator[tuple[int, Any]]:
        """As `Executor.run`; `function` must be importable by name. A job whose worker died is run once more."""
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
        """End the workers, also those in the middle of a job."""
        for worker in self._workers:
            worker.connection.close()
            if worker.job is None:
                worker.process.join(timeout=5)
            worker.process.kill()
        for worker in self._workers:
            self._reap(worker)
        self._workers.clear()

    def _start(self, n: int) -> None:
        """Have `n` workers; one that died while it was idle costs no job an attempt."""
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
            worker.connection.close()  # it died while idle; _wait finds that out

    def _wait(self) -> list[tuple[_Worker, Any]]:
        """The busy workers that have answered, with their answer, or None for one that died."""
        busy = [worker for worker in self._workers if worker.job is not None]
        closed = [worker for worker in busy if worker.connection.closed]
        if closed:
            return [(worker, None) for worker in closed]
        watched = [_death(worker) for worker in busy]
        ready = multiprocessing.connection.wait([*(worker.connection for worker in busy), *watched])
        found = []
        for worker, death in zip(busy, watched, strict=True):
            if death in ready:
                _end_of_stream(worker.connection)  # so that half an answer is not waited for
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
    """A descriptor for a process's death: the pipe's end is no sure sign, since what the worker forked may hold it."""
    assert pid is not None
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # another system, or a kernel before 5.3
        return None


def _death(worker: _Worker) -> Any:
    return worker.process.sentinel if worker.watch is None else worker.watch


def _end_of_stream(connection: Any) -> None:
    """Let `connection` give what it holds and then end, whoever else has the other end."""
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
    """The value of what `answer` gave, or the exception that it tells of."""
    kind, value = outcome
    if kind == "mistake":
        raise ConfigError(value)
    if kind == "error":
        raise RuntimeError(f"a worker failed:\n{value}")
    return value


def _serve(connection: Any, owner_pid: int) -> None:
    """A worker's life: a job, an answer, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides what ends
    _die_with(owner_pid)
    while True:
        try:
            function, job = connection.recv()  # raises what importing the function raises, beside the end of the pipe
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
    """Ask the kernel to end this process with its owner, in the middle of a job too; without Linux it ends after it."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, from linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != owner_pid:
            os._exit(1)  # it ended before the kernel knew of our wish


def answer(function: Callable[[Any], Any], job: Any) -> tuple[str, Any]:
    """Call it; ("done", what it returned), ("mistake", a ConfigError's line) or ("error", a traceback)."""
    try:
        return "done", function(job)
    except ConfigError as error:
        return "mistake", str(error)
    except Exception:
        return "error", traceback.format_exc()

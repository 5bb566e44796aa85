"""Runs jobs on worker processes of this machine and notices at once when one dies; knows nothing of stages or files."""

import multiprocessing
import multiprocessing.connection
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError

_ATTEMPTS = 2  # a worker may be killed by chance (memory pressure, an operator); twice on the same job is no chance


@dataclass
class _Worker:
    process: Any
    connection: Any
    job: int | None = None


class LocalWorkers:
    """A set of worker processes, started when the first job comes and kept until `close`.

    Not multiprocessing.Pool, which waits for ever for the result of a worker that was killed. The processes are
    spawned, so that they share nothing with the caller, and they end when it does.
    """

    def __init__(self, n_workers: int) -> None:
        if n_workers < 1:
            raise ConfigError(f"workers = {n_workers} must be at least 1")
        self.n_workers = n_workers
        self._workers: list[_Worker] = []
        self._context = multiprocessing.get_context("spawn")

    def run(
        self, function: Callable[[Any], Any], jobs: Sequence[Any], *, name: Callable[[Any], str] = str
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index of the job, function(job)) as jobs finish. `function` must be importable by name.

        A job whose worker died is run once more on a new one. ConfigError: from the function, or when a job's worker
        dies twice. RuntimeError: any other exception in the function, with its traceback. `name` gives what errors
        call a job.
        """
        waiting = deque(range(len(jobs)))
        attempts = [0] * len(jobs)
        while waiting or any(worker.job is not None for worker in self._workers):
            self._start(min(self.n_workers, len(jobs)))
            for worker in self._workers:
                if worker.job is None and waiting:
                    worker.job = waiting.popleft()
                    attempts[worker.job] += 1
                    self._send(worker, (function, jobs[worker.job]))
            for worker, outcome in self._wait():
                index, worker.job = worker.job, None
                assert index is not None
                if outcome is None:
                    self._bury(worker, name(jobs[index]), final=attempts[index] == _ATTEMPTS)
                    waiting.appendleft(index)
                else:
                    yield index, _unwrap(outcome)

    def close(self) -> None:
        """End the workers, also those in the middle of a job."""
        for worker in self._workers:
            worker.connection.close()
            if worker.job is None:
                worker.process.join(timeout=5)
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()

    def _start(self, n: int) -> None:
        while len(self._workers) < n:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # the worker holds the only other end, so its death is an end of file here
            self._workers.append(_Worker(process, ours))

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
        ready = multiprocessing.connection.wait([worker.connection for worker in busy])
        return [(worker, _receive(worker.connection)) for worker in busy if worker.connection in ready]

    def _bury(self, worker: _Worker, job: str, *, final: bool) -> None:
        worker.connection.close()
        worker.process.join()
        self._workers.remove(worker)
        code = worker.process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
        if final:
            raise ConfigError(
                f"{job}: its worker {how}, twice; if memory ran out, use fewer workers (now {self.n_workers}) "
                "or smaller input files"
            )


def _receive(connection: Any) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _unwrap(outcome: tuple[str, Any]) -> Any:
    kind, value = outcome
    if kind == "mistake":
        raise ConfigError(value)
    if kind == "error":
        raise RuntimeError(f"a worker failed:\n{value}")
    return value


def _serve(connection: Any) -> None:
    """A worker's life: a job, an answer, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides what ends
    while True:
        try:
            function, job = connection.recv()  # raises what importing the function raises, beside the end of the pipe
        except (EOFError, OSError):
            return
        except Exception:
            answer = ("error", traceback.format_exc())
        else:
            answer = _answer(function, job)
        try:
            connection.send(answer)
        except OSError:
            return


def _answer(function: Callable[[Any], Any], job: Any) -> tuple[str, Any]:
    try:
        return "done", function(job)
    except ConfigError as error:
        return "mistake", str(error)
    except Exception:
        return "error", traceback.format_exc()

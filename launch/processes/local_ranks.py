"""Runs one function on several fresh processes of this machine as ranks, and ends them all when one fails.

Unlike `launch.local_launch.launch_local` it starts no interpreter for each rank: a fork server loads torch once, so
that many short runs cost little. The ranks are not restarted, and a signal ends them without saving.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from gpt.errors import ConfigError
from launch.processes.environment import die_with_parent, share_machine
from launch.processes.failures import exit_words

LONGEST_SOCKET_NAME = 107 if sys.platform == "linux" else 103  # unix(7): sun_path, without its last zero
SOCKET_NAME = "/pymp-xxxxxxxx/listener-xxxxxxxx"  # what multiprocessing adds to the folder
MISTAKE = 2  # the exit status of a rank that met a user's mistake
SETTLE_S = 0.3  # how long after a first failure others are looked for: the first one seen need not be the cause
LAST_LINES = 40


class RankFailed(Exception):
    """A rank died or raised; the message names it and ends with the last lines that it wrote."""


def fork_server(preload: Sequence[str]) -> ForkServerContext:
    """What `run_ranks` starts ranks with. `preload`: modules to load once; they must start no threads. ConfigError: the
    folder for temporary files has so long a name that the server's socket in it has none."""
    room = LONGEST_SOCKET_NAME - len(SOCKET_NAME)
    if len(os.fsencode(tempfile.gettempdir())) > room:
        raise ConfigError(
            f"TMPDIR = {tempfile.gettempdir()} is too long a name for the sockets in it; set TMPDIR to a folder whose "
            f"name has at most {room} characters"
        )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise SystemExit(128 + number), so that ranks and temporary files go before the
    process does. Main thread only. A signal that is ignored, as nohup does, stays so."""

    def unwind(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second one must not break into the clearing up
        sys.exit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, unwind)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_ranks(
    context: ForkServerContext, function: Callable[..., None], arguments: Sequence[str], *, nproc: int, logs: Path
) -> None:
    """Call `function(rank, *arguments)` on each rank and return when all have returned.

    Rank 0 keeps the terminal, what the others write goes to files in `logs`. When a rank fails the others are killed,
    whatever they wait for: RankFailed, or ConfigError for a user's mistake. No rank outlives this process.
    """
    logs.mkdir(parents=True)
    ranks = [
        context.Process(target=_serve, args=(function, rank, nproc, arguments, str(logs)), daemon=True)
        for rank in range(nproc)
    ]
    try:
        for process in ranks:
            process.start()
        failures = _wait(ranks)
    finally:
        started = [process for process in ranks if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()
    if failures:
        # a killed rank is a cause; its peers' broken connections, which they raise, follow
        rank = min(failures, key=lambda rank: (failures[rank] > 0, _failed_at(logs, rank), rank))
        log = _log(logs, rank)
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if failures[rank] == MISTAKE:
            raise ConfigError(said)
        lines = [f"\n[rank {rank}] {line}" for line in said.splitlines()[-LAST_LINES:]]
        raise RankFailed(f"rank {rank} of {nproc} failed first ({exit_words(failures[rank])}){''.join(lines)}")


def _wait(ranks: Sequence[BaseProcess]) -> dict[int, int]:
    """Until all have ended well, or one has not: then rank to exit status of those that have failed by themselves."""
    running = {process.sentinel: process for process in ranks}
    while running:
        for sentinel in multiprocessing.connection.wait(list(running)):
            assert isinstance(sentinel, int)
            process = running.pop(sentinel)
            process.join()
            if process.exitcode != 0:
                time.sleep(SETTLE_S)
                codes = {rank: process.exitcode for rank, process in enumerate(ranks)}
                return {rank: code for rank, code in codes.items() if code}
    return {}


def _serve(function: Callable[..., None], rank: int, nproc: int, arguments: Sequence[str], logs: str) -> None:
    """A rank's life. What it raises goes to its log, for the launcher to show."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the launcher decides what ends
    die_with_parent()
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    share_machine(nproc)
    log = _log(Path(logs), rank)
    with log.open("ab") as file:
        if rank > 0:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    try:
        function(rank, *arguments)
    except ConfigError as error:
        log.write_text(str(error), encoding="utf-8")
        sys.exit(MISTAKE)
    except Exception:
        sys.stdout.flush()
        with log.open("a", encoding="utf-8") as text:
            text.write(traceback.format_exc())
        sys.exit(1)


def _end_with_launcher() -> None:
    """Ends this rank when its launcher is gone, even by kill -9.

    The kernel's signal does not: the parent that it watches is the fork server, which itself lives on while a rank
    does, since every rank holds the pipe by whose end the server sees that nobody needs it.
    """
    launcher = multiprocessing.parent_process()  # not getppid(): the process that asked the fork server for this one
    assert launcher is not None
    launcher.join()
    os._exit(1)


def _log(logs: Path, rank: int) -> Path:
    return logs / f"rank{rank}.log"


def _failed_at(logs: Path, rank: int) -> float:
    path = _log(logs, rank)
    return path.stat().st_mtime if path.exists() else 0.0

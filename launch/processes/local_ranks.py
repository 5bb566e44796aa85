"""Run one function in several fresh processes of this machine, one per rank. If one fails, end all.

Unlike `local_launch.launch_local` it does not start an interpreter for each rank: a fork server loads torch once, so
many short runs are cheap. Ranks are not restarted, and a signal ends them without saving.
"""

import gc
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
from launch.processes.environment import share_machine
from launch.processes.failures import MISTAKE, describe_exit, last_lines
from launch.processes.rank_process import die_with_parent
from launch.processes.sealing import new_secret
from parallel.errors import ForgedMessage

MAX_SOCKET_NAME = 107 if sys.platform == "linux" else 103  # unix(7): sun_path without the terminating zero
SOCKET_NAME = "/pymp-xxxxxxxx/listener-xxxxxxxx"  # the part that multiprocessing appends to the folder
SETTLE_S = 0.3  # wait this long after the first failure for others: the first one seen may not be the cause


class RankFailed(Exception):
    """A rank died or raised; the message names it and ends with the last lines of its output.

    After a crash, the stack of the thread that crashed comes first, if faulthandler wrote it.
    """


def fork_server(preload: Sequence[str]) -> ForkServerContext:
    """The context with which `run_ranks` starts ranks. `preload`: modules to load once; they must not start threads.

    ConfigError if the name of the temporary folder is too long for the server's socket in it.
    """
    limit = MAX_SOCKET_NAME - len(SOCKET_NAME)
    if len(os.fsencode(tempfile.gettempdir())) > limit:
        raise ConfigError(
            f"TMPDIR = {tempfile.gettempdir()} is invalid: the name is too long for the sockets in it. Set TMPDIR to a "
            f"folder whose name has at most {limit} characters"
        )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Inside the block, SIGTERM and SIGHUP raise SystemExit(128 + number), so that ranks and temporary files are
    removed before the process ends. Main thread only. An ignored signal (nohup) stays ignored."""

    def unwind(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
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

    Rank 0 keeps the terminal; the output of the others goes to files in `logs`. If a rank fails, the others are killed,
    even while they wait, and RankFailed is raised, or ConfigError for a user's mistake. No rank outlives this process.
    """
    logs.mkdir(parents=True)
    secret = new_secret()
    ranks = [
        context.Process(target=_serve, args=(function, rank, nproc, arguments, str(logs), secret), daemon=True)
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
        # A killed rank is the cause; its peers then raise errors about broken connections.
        rank = min(failures, key=lambda rank: (failures[rank] > 0, _failed_at(logs, rank), rank))
        log = _log(logs, rank)
        output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if failures[rank] == MISTAKE:
            raise ConfigError(output)
        lines = [f"\n[rank {rank}] {line}" for line in last_lines(output)]
        raise RankFailed(f"rank {rank} of {nproc} failed first ({describe_exit(failures[rank])}){''.join(lines)}")


def _wait(ranks: Sequence[BaseProcess]) -> dict[int, int]:
    """Wait until all ranks have succeeded or one has failed; returns rank -> exit status of the failed ones."""
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


def _serve(
    function: Callable[..., None], rank: int, nproc: int, arguments: Sequence[str], logs: str, secret: str
) -> None:
    """The body of one rank's process. An exception goes to the rank's log, for the launcher to show."""
    gc.freeze()  # a collection would copy the pages of all objects that the fork server has loaded
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the launcher handles it
    die_with_parent()
    end_with_launcher()
    share_machine(nproc, secret)
    log = _log(Path(logs), rank)
    with log.open("ab") as file:
        if rank > 0:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    try:
        function(rank, *arguments)
    except (ConfigError, ForgedMessage) as error:  # one line each, without a traceback
        log.write_text(str(error), encoding="utf-8")
        sys.exit(MISTAKE)
    except Exception:
        sys.stdout.flush()
        with log.open("a", encoding="utf-8") as text:
            text.write(traceback.format_exc())
        sys.exit(1)


def end_with_launcher() -> None:
    """From now on, end this process of a fork server when its launcher is gone, even by kill -9.

    The kernel's signal does not do that: it watches the fork server, which is the parent. The server lives as long as
    any rank, because it exits only when its pipe is closed and every rank holds that pipe open.
    """
    launcher = multiprocessing.parent_process()  # the process that asked the fork server for this rank, not getppid()
    assert launcher is not None

    def watch() -> None:
        launcher.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _log(logs: Path, rank: int) -> Path:
    return logs / f"rank{rank}.log"


def _failed_at(logs: Path, rank: int) -> float:
    path = _log(logs, rank)
    return path.stat().st_mtime if path.exists() else 0.0

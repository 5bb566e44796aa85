"""Run ranks as child processes of this machine, once: start them, pass signals on, wait, and leave none behind."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.files.json_text import decode_json
from launch.processes.failures import INTERRUPTED, SAVED_AFTER_SIGNAL, STOP_SIGNALS, signal_pipe

INTERRUPTS = (signal.SIGINT, signal.SIGQUIT)  # from a keyboard: nobody starts the run again
STOPPED_BY_INTERRUPT = (INTERRUPTED, -signal.SIGINT)
STOPPED = (SAVED_AFTER_SIGNAL, *(-number for number in STOP_SIGNALS), *STOPPED_BY_INTERRUPT)  # exit codes
POLL_S = 0.05
PEERS_S = 30.0  # how long the peers of a rank that failed may take to end before they are killed
INTERRUPTED_S, INTERRUPTED_AGAIN_S = 10.0, 4.0  # the same after Ctrl-C where nothing is saved, and after two


@dataclass(frozen=True)
class RankFailure:
    """How one rank ended: its exit code as of subprocess, when, and what the rank or its watchdog recorded."""

    exitcode: int
    timestamp: float
    error_file: str
    error_file_data: dict[str, Any]


@dataclass(frozen=True)
class GroupEnd:
    """The failures of a start by rank, in the order in which they were seen, and the first signal that it got."""

    failures: Mapping[int, RankFailure]
    signal: int | None = None
    overdue: tuple[int, ...] = ()  # the ranks that did not end in time after that signal, and were killed


class SignalInbox:
    """The signals to this process, in order. None interrupts the code that runs when it comes."""

    def __init__(self, receives: int) -> None:
        self._receives = receives

    def wait(self, seconds: float) -> list[int]:
        """Return the numbers of the signals that came. Wait for one for at most so many seconds."""
        poll = select.poll()
        poll.register(self._receives, select.POLLIN)
        if not poll.poll(max(0.0, seconds) * 1000):
            return []
        watched = (*STOP_SIGNALS, *INTERRUPTS)
        return [number for number in os.read(self._receives, 64) if number in watched]


@contextmanager
def signal_inbox() -> Iterator[SignalInbox]:
    """Collect the signals inside the block instead of ending. Main thread only.

    A SIGHUP that is ignored (nohup) stays ignored.
    """
    assert threading.current_thread() is threading.main_thread()
    with signal_pipe(lambda *_: None, *INTERRUPTS) as received:
        yield SignalInbox(received)


def run_group(
    nproc: int,
    command: Sequence[str],
    settings: Mapping[str, str],
    *,
    log_dir: Path,
    grace_s: float,
    interrupted_s: float = INTERRUPTED_S,
    inbox: SignalInbox,
) -> GroupEnd:
    """Start `nproc` ranks of the command and wait until all have ended. `settings`: their whole environment.

    Rank 0 keeps the terminal; the output of the others goes to LOG_DIR/RANK/stdout.log and stderr.log. A signal is
    passed on, and the ranks have `grace_s` seconds to save, or `interrupted_s` after SIGINT. If a rank fails, the
    others get SIGTERM. No rank outlives this call.
    """
    with ExitStack() as stack:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(stack.enter_context(reserved_port()))}
        ranks = []
        for rank in range(nproc):
            environment = {**settings, **address, **_rank_settings(rank, nproc, log_dir)}
            ranks.append(_start(rank, command, environment, log_dir))
            stack.callback(_end, ranks[-1])
        return _Wait(ranks, log_dir, inbox, grace_s, interrupted_s).until_all_have_ended()


class _Wait:
    def __init__(
        self,
        ranks: Sequence["subprocess.Popen[bytes]"],
        log_dir: Path,
        inbox: SignalInbox,
        grace_s: float,
        interrupted_s: float,
    ) -> None:
        self.running = dict(enumerate(ranks))
        self.log_dir, self.inbox, self.grace_s, self.interrupted_s = log_dir, inbox, grace_s, interrupted_s
        self.failures: dict[int, RankFailure] = {}
        self.signal: int | None = None
        self.overdue: tuple[int, ...] = ()
        self.ends_at = float("inf")

    def until_all_have_ended(self) -> GroupEnd:
        while self.running:
            for number in self.inbox.wait(POLL_S):
                self.pass_on(number)
            self.collect()
            if self.running and time.monotonic() > self.ends_at:
                self.overdue = self.overdue or tuple(self.running)
                self.send(signal.SIGKILL)
                self.ends_at = float("inf")
        return GroupEnd(self.failures, self.signal, self.overdue if self.signal is not None else ())

    def pass_on(self, number: int) -> None:
        if self.signal is not None and number not in INTERRUPTS:
            return  # further stop signals change nothing
        if number in STOP_SIGNALS:
            patience_s = self.grace_s
        elif number == signal.SIGINT and self.signal not in INTERRUPTS:
            patience_s = self.interrupted_s
        else:
            patience_s = INTERRUPTED_AGAIN_S
        self.signal = self.signal or number
        self.ends_at = min(self.ends_at, time.monotonic() + patience_s)
        self.send(number)

    def collect(self) -> None:
        ended = {rank: process.returncode for rank, process in self.running.items() if process.poll() is not None}
        # Ranks that stop on a signal come first: at the same moment, another error can only follow from that.
        for rank, code in sorted(ended.items(), key=lambda item: item[1] not in STOPPED):
            del self.running[rank]
            if code == 0:
                continue
            if not self.failures:
                patience_s = PEERS_S if self.signal is None else self.grace_s
                self.ends_at = min(self.ends_at, time.monotonic() + patience_s)
                self.send(signal.SIGINT if code in STOPPED_BY_INTERRUPT else signal.SIGTERM)
            file = _error_file(self.log_dir, rank)
            self.failures[rank] = RankFailure(code, time.time(), str(file), _read_error(file))

    def send(self, number: int) -> None:
        for process in self.running.values():
            process.send_signal(number)


def _start(
    rank: int, command: Sequence[str], environment: Mapping[str, str], log_dir: Path
) -> "subprocess.Popen[bytes]":
    folder = log_dir / str(rank)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        outputs: dict[str, Any] = {}
        if rank > 0:
            outputs = {name: stack.enter_context((folder / f"{name}.log").open("wb")) for name in ("stdout", "stderr")}
        stack.enter_context(_interrupts_wait())
        # A new session: Ctrl-C in the terminal reaches only this launcher, which passes it on once.
        return subprocess.Popen([sys.executable, *command], env=environment, start_new_session=True, **outputs)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Block SIGINT. A process started here inherits that until `enter_process`: before, Python answers with a
    traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()


def _rank_settings(rank: int, nproc: int, log_dir: Path) -> dict[str, str]:
    """The variables that torchrun would set for a rank of one node."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": log_dir.name,
        "TORCHELASTIC_ERROR_FILE": str(_error_file(log_dir, rank)),
    }


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of the loopback interface. Inside the block Linux gives it to nobody, except to rank 0, which asks for it.

    Rank 0 binds it seconds later, and meanwhile other programs open connections. Linux binds a second socket if both
    have SO_REUSEADDR and the first does not listen. SO_REUSEADDR is set after the bind: else two launchers could
    reserve the same port. On other systems the port is only free at the start.
    """
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = int(reserved.getsockname()[1])
        if sys.platform == "linux":
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            reserved.close()
        yield port


def _error_file(log_dir: Path, rank: int) -> Path:
    return log_dir / str(rank) / "error.json"


def _read_error(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = decode_json(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}

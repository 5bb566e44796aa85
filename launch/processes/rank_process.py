"""The life of a `triaxial` process: die with the launcher, keep freed memory, mark a save, stop on an early warning."""

import ctypes
import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from gpt.errors import ConfigError
from gpt.telemetry.output import own_output
from launch.processes.environment import LauncherEnvironment, quiet_profiler, user_chose_malloc
from launch.processes.error_reports import leave_word, record_end, report_crashes, status_before_restart
from launch.processes.failures import INTERRUPTED, SAVED_AFTER_SIGNAL, STOP_SIGNALS, signal_pipe

MIN_OPEN_FILES = 64
MAX_OPEN_FILES = 2**20  # some programs loop over all possible descriptors
FIRST_STEP_S = 0.5  # a signal waits this long for the end of the first step, which peers may have reached
EXPECT_S = 1.0
EXPECT_AT_START_S = 2.0 + FIRST_STEP_S  # before the first step, each stop signal ends one rank before the others
TOGETHER_S = 0.02  # signals within this time count as simultaneous
LEAVING_S = 2.0  # how long a stopped rank may take to release what it holds, such as the lock of the run directory


def enter_process(*, is_command: bool = True) -> None:
    """Prepare this process; call it first in every `triaxial` process.

    A launched rank dies with its launcher and records its crash for it. torchrun restarts ranks after every failure: if
    a user's mistake or a stop signal ended the previous start, this one exits at once with the same status. With
    `is_command` a crash is printed without secrets, and closed or broken output is handled; pass False in a user's own
    program, whose excepthook and streams are then kept. KeyboardInterrupt: Ctrl-C came before this call.
    """
    quiet_profiler()
    if is_command:
        own_output(waits=True)
    raise_open_files_limit()
    is_elastic = LauncherEnvironment.from_environment().is_elastic
    if is_command or is_elastic:
        report_crashes()
    if is_elastic:
        die_with_parent()
        status = status_before_restart()
        if status is not None:
            os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # which our launcher blocked until here


@contextmanager
def fast_imports() -> Iterator[None]:
    """Pause the garbage collector inside the block, and exempt the objects that exist at its end from collections.

    Importing torch makes a million objects, none of them garbage; visiting them takes a fifth of the time of a start.
    Only for processes of ours: a program that calls `main` decides about its own collector.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, even by kill -9. Linux only; no effect elsewhere.

    Otherwise the ranks of a killed torchrun live on: they hold their GPUs and wait in collectives.
    """
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, from linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)
    launcher = LauncherEnvironment.from_environment().launcher_pid
    if launcher is not None and launcher != os.getppid():
        os._exit(1)  # the launcher ended before the kernel had our request


def raise_open_files_limit() -> None:
    """Let this process and its children open as many files and sockets as the system allows without privileges.

    Many systems set 1,024 by default for the sake of select(), which nothing here uses; the hard limit is higher. A
    rank keeps several sockets for each peer.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
        if 0 <= soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def check_open_files(world_size: int) -> None:
    """ConfigError if this process may open fewer files and sockets than a rank needs even for the smallest model.

    With too few, gloo waits for connections that it cannot accept, and other ranks seem to be at fault.
    """
    needed = MIN_OPEN_FILES + 4 * min(world_size, 16)  # measured: 55 on 2 ranks, 61 on 4
    with suppress(ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if 0 <= limit < needed:
            raise ConfigError(
                f"ulimit -Hn = {limit} is invalid: a rank opens at least {needed} files and sockets. Raise the hard "
                f"limit to 65536 (limits.conf, LimitNOFILE= of systemd, --ulimit of docker)"
            )


def keep_freed_memory() -> None:
    """Make glibc keep freed memory in this running process, as CPU_MEMORY_SETTINGS does from the start of one.

    On the CPU this saves a page fault for every page of every large tensor in every step. No effect with other C
    libraries, or if the user has set one of those variables.
    """
    if user_chose_malloc():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD, from malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def mark_end(word: str) -> int:
    """Leave this word for the launcher, on the first rank of each node: nodes need not share the file. Return 0."""
    if LauncherEnvironment.from_environment().local_rank == "0":
        leave_word(word)
    return 0


def mark_saved() -> int:
    """Tell the launcher that all ranks saved after a signal and should be started again; return SAVED_AFTER_SIGNAL.

    Call it as soon as nothing can be lost any more: our launcher believes it whatever happens afterwards.
    """
    word = "saved after a signal"
    mark_end(word)
    record_end(word, exit_status=SAVED_AFTER_SIGNAL)
    return SAVED_AFTER_SIGNAL


def mark_interrupted() -> int:
    """Tell the launcher that all ranks saved after Ctrl-C, and are not to be started again; return INTERRUPTED."""
    mark_end("interrupted")
    record_end("interrupted", exit_status=INTERRUPTED)
    return INTERRUPTED


# ---- signals that stop a rank ----------------------------------------------------------------------------------------


class StopSignals:
    """The effect of a signal on this rank: see docs/guides/reliability/signals.md. A StopRequest.

    Until the first step is done there is nothing to save: the rank releases `held` and exits, with SAVED_AFTER_SIGNAL
    or, after SIGINT, INTERRUPTED. Then the loop saves and ends. After the loop the run ends anyway, and a signal
    changes nothing. A second SIGINT ends the rank at once.

    A thread acts on the signals. Python runs no handler while the main thread is in a collective or a compiler, and
    an import of numpy turns a KeyboardInterrupt into an ImportError.
    """

    def __init__(self) -> None:
        self.held = ExitStack()  # the context managers to leave before this process may end
        self._requested = self._is_ending = False
        self._progress = threading.Event()
        self._interrupts = 0  # SIGINTs so far
        self._turn = threading.Lock()

    def __call__(self) -> bool:
        return self._requested

    @property
    def interrupted(self) -> bool:
        return self._interrupts > 0

    def interrupt(self) -> None:
        """Ask to save and end, as Ctrl-C does."""
        self._interrupts, self._requested = self._interrupts + 1, True

    def step_done(self) -> None:
        with self._turn:  # a thread that ends this process never returns it
            self._progress.set()

    def expect(self) -> None:
        """Wait briefly for a signal after a peer was lost.

        If a signal ended that peer, the launcher passes it on; only without one is the loss a fault.
        """
        time.sleep(EXPECT_S if self._progress.is_set() else EXPECT_AT_START_S)
        if self.interrupted:
            self._leave(INTERRUPTED, "")  # the launcher has ended that peer

    def end(self) -> None:
        """Ignore stop signals from now on: the exit status is decided."""
        with self._turn:
            self._is_ending = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler in the main thread, which does nothing: the thread that follows the signals acts."""

    def follow(self, received: int) -> None:
        """Read the numbers of signals from a pipe, until it is closed. Runs in its own thread.

        Of signals that come together, the handler of the last one runs first. SIGINT goes first here.
        """
        while True:
            select.select([received], [], [])
            time.sleep(TOGETHER_S)
            if not (numbers := os.read(received, 64)):
                return
            self._progress.wait(FIRST_STEP_S)  # a rank that ends here must not leave peers that have done the step
            for number in sorted(numbers, key=lambda number: number != signal.SIGINT):
                with self._turn:
                    self._follow_one(number)

    def _follow_one(self, number: int) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            self._leave(INTERRUPTED, "")
        if self._is_ending:
            return
        self._requested = True
        if self._progress.is_set():
            if number == signal.SIGINT and LauncherEnvironment.from_environment().local_rank in (None, "0"):
                _say("\ntriaxial: finishing this step, then saving; Ctrl-C again ends at once, without a save")
            return
        name, status = signal.Signals(number).name, INTERRUPTED if self.interrupted else SAVED_AFTER_SIGNAL
        self._leave(status, f"stopped by {name} before the first step")

    def _leave(self, status: int, word: str) -> None:
        def release() -> None:
            if status == INTERRUPTED or word:
                mark_end("interrupted" if status == INTERRUPTED else word)
            with suppress(Exception):
                self.held.close()
            if word and not LauncherEnvironment.from_environment().is_elastic:  # else the launcher knows why
                _say(f"triaxial: {word}: nothing is lost")

        releasing = threading.Thread(target=release, daemon=True)
        releasing.start()
        releasing.join(LEAVING_S)  # a file system or a terminal may not answer
        os._exit(status)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handle the signals of STOP_SIGNALS, and SIGINT, inside the block. Enter it before the imports that take seconds.

    A SIGHUP that is ignored (nohup) stays ignored. Outside of the main thread it has no effect.
    """
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with signal_pipe(stop.handle, signal.SIGINT) as received:
        threading.Thread(target=_follow_and_close, args=(stop, os.dup(received)), daemon=True).start()
        try:
            yield stop
        finally:
            stop.end()


def _follow_and_close(stop: StopSignals, received: int) -> None:
    try:
        stop.follow(received)
    finally:
        os.close(received)


def leave_interrupted() -> int:
    """Return INTERRUPTED; a launched rank exits with it at once.

    Python's shutdown takes a second in which peers lose this rank, and its launcher does not know why.
    """
    if LauncherEnvironment.from_environment().is_elastic:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(INTERRUPTED)
    return INTERRUPTED


def ignore_stop_signals() -> None:
    """Ignore them and Ctrl-C for the rest of this process: its exit status is decided, and one may still come.

    While Python shuts down it has no handlers, so a late signal would change the exit status.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (*STOP_SIGNALS, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

"""The life of a `triaxial` process: die with the launcher, keep freed memory, mark a save, stop on an early warning."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from gpt.telemetry.output import own_output
from launch.processes.environment import ClusterEnvironment, LauncherEnvironment, quiet_profiler
from launch.processes.error_reports import had_mistake_before_restart, report_crashes
from launch.processes.failures import MISTAKE, SAVED_AFTER_SIGNAL


def enter_process(*, is_command: bool = True) -> None:
    """Prepare this process; call it first in every `triaxial` process.

    A launched rank dies with its launcher and records its crash for it. A rank that torchrun restarts after a user's
    mistake exits at once with the same status. With `is_command` a crash is printed without secrets, and closed or
    broken output is handled; pass False in a user's own program, whose excepthook and streams are then kept.
    """
    quiet_profiler()
    if is_command:
        own_output(waits=True)
    is_elastic = LauncherEnvironment.from_environment().is_elastic
    if is_command or is_elastic:
        report_crashes()
    if is_elastic:
        die_with_parent()
        if had_mistake_before_restart():
            os._exit(MISTAKE)  # torchrun restarts after every failure, also if a restart cannot help


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


def keep_freed_memory() -> None:
    """Make glibc keep freed memory in this running process, as CPU_MEMORY_SETTINGS does for a child.

    On the CPU this saves a page fault for every page of every large tensor in every step. No effect with other C
    libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD, from malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def mark_saved(environment: ClusterEnvironment) -> int:
    """Tell the launcher that this run saved after a signal and should be started again; return SAVED_AFTER_SIGNAL.

    torchrun hides the exit status of its ranks, so rank 0 also writes `saved_file`, which slurm/train.sbatch looks for.
    """
    if environment.rank == 0 and environment.saved_file is not None:
        with suppress(OSError):  # a full disk, perhaps: the run has saved all the same
            environment.saved_file.parent.mkdir(parents=True, exist_ok=True)
            environment.saved_file.write_text("saved after a signal\n", encoding="utf-8")
    return SAVED_AFTER_SIGNAL


@contextmanager
def early_warning_ends(environment: ClusterEnvironment) -> Iterator[None]:
    """Inside the block, SIGUSR1 ends a rank that is not training (yet or any more), and the job is to start again.

    SIGUSR1 comes before a time limit. Nothing is lost: a rank that is not training has nothing to save. SIGTERM still
    kills, because a launcher sends it to the other ranks after one died and should not have to wait for them. Has an
    effect only in the main thread.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        if environment.rank == 0:
            print("triaxial: stopped by SIGUSR1 while not training: nothing is lost", file=sys.stderr, flush=True)
        raise SystemExit(mark_saved(environment))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)

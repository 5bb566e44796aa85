"""A rank of a real `triaxial train` in which one thing goes wrong at one step of one rank, as said by its first words.

hang_program FAULT RANK STEP train RECIPE ...
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time

import torch.distributed as dist

from gpt.dataset import TrainingData
from launch.main import main
from parallel.engines.native import NativeEngine


def python_loop() -> None:
    while True:
        pass


def hold_the_lock() -> None:
    """A C function that sleeps and never lets another thread run Python."""
    while True:
        ctypes.PyDLL(None).sleep(1000)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def freeze() -> None:
    """As when a machine stands still: this rank and its monitor."""
    children = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "hang_monitor"], capture_output=True, text=True)
    for pid in children.stdout.split():
        os.kill(int(pid), signal.SIGSTOP)
    stop()


def read_what_never_comes() -> None:
    path = tempfile.mktemp()
    os.mkfifo(path)
    with open(path, "rb") as file:
        file.read(1)


def leave_out_a_collective() -> None:
    real = dist.all_reduce

    def skip(*_, **__):
        dist.all_reduce = real

    dist.all_reduce = skip


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    raise ValueError("the third tensor is bad")


def slow() -> None:
    time.sleep(3.0)


IN_THE_STEP = {
    "loop": python_loop,
    "gil": hold_the_lock,
    "stop": stop,
    "freeze": freeze,
    "skip": leave_out_a_collective,
    "kill": kill,
    "crash": crash,
    "slow": slow,
}
IN_THE_DATA = {"data": read_what_never_comes}


def once(method, action, at: int):
    """The method, with `action` before its call number `at`, counted from 1."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == at:
            action()
        return method(*args, **kwargs)

    return wrapped


if __name__ == "__main__":
    fault, rank, step, *words = sys.argv[1:]
    if os.environ["RANK"] == rank:
        if fault in IN_THE_STEP:
            NativeEngine.forward_backward = once(NativeEngine.forward_backward, IN_THE_STEP[fault], int(step))
        else:
            TrainingData.batch = once(TrainingData.batch, IN_THE_DATA[fault], int(step))
    sys.exit(main(words))

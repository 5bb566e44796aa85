"""A program for tests: a rank of a real `triaxial train` with one fault.

    hang_program FAULT:RANK:STEP[,...] train RECIPE ...

The first fault happens in the first start of the ranks, the second one in the restart after it, and so on. Steps count
from 1. With TEST_OF_HANGS=FOLDER in the environment, FOLDER/fault gets the time of the fault, and FOLDER/rank0.pid and
so on get the process ids of the ranks.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch.distributed as dist

from gpt.data.dataset import TrainingData
from gpt.training import validation
from gpt.training.loop import TrainingLoop
from launch.main import main
from launch.processes.environment import ClusterEnvironment
from parallel.engines.checkpoints import SharedCheckpoints
from parallel.engines.native import NativeEngine


def python_loop() -> None:
    while True:
        pass


def hold_the_lock() -> None:
    """Call a C function that sleeps while holding Python's global lock."""
    while True:
        ctypes.PyDLL(None).sleep(1000)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def freeze() -> None:
    """Stop this rank and its monitor, as when a machine freezes."""
    children = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "parallel.health.monitor"], capture_output=True, text=True
    )
    for pid in children.stdout.split():
        os.kill(int(pid), signal.SIGSTOP)
    stop()


def alone() -> None:
    """Kill the monitors of all ranks and stop this rank."""
    ranks = subprocess.run(["pgrep", "-P", str(os.getppid())], capture_output=True, text=True).stdout.split()
    subprocess.run(["pkill", "-KILL", "-P", ",".join(ranks), "-f", "parallel.health.monitor"], check=True)
    stop()


def read_what_never_comes() -> None:
    path = tempfile.mktemp()
    os.mkfifo(path)
    with open(path, "rb") as file:
        file.read(1)


def leave_out_a_collective() -> None:
    """Leave out the next collective of training; background saves have their own collectives."""
    real = dist.all_reduce

    def skip(*arguments, **options):
        if threading.current_thread() is not threading.main_thread():
            return real(*arguments, **options)
        dist.all_reduce = real
        return None

    dist.all_reduce = skip


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    raise ValueError("the third tensor is bad")


IN_THE_STEP = {
    "loop": python_loop,
    "gil": hold_the_lock,
    "stop": stop,
    "freeze": freeze,
    "alone": alone,
    "skip": leave_out_a_collective,
    "kill": kill,
    "crash": crash,
}
IN_THE_DATA = {"data": read_what_never_comes}


def note(name: str, text: str) -> None:
    if "TEST_OF_HANGS" in os.environ:
        Path(os.environ["TEST_OF_HANGS"], name).write_text(text)


def break_at(step: int, owner: type, name: str, action) -> None:
    """Run `action` before the first call of a method that the training loop makes in step `step`."""
    method, take_step, now = getattr(owner, name), TrainingLoop.take_step, [0]

    def noting(loop, *args):
        now[0] = loop.state.step + 1
        return take_step(loop, *args)

    def broken(*args, **kwargs):
        if now[0] == step:
            now[0] = 0
            note("fault", str(time.time()))
            action()
        return method(*args, **kwargs)

    TrainingLoop.take_step = noting
    setattr(owner, name, broken)


def slow_down(seconds: float) -> None:
    """Slow down what may take long in a healthy run: the first step, each save, an evaluation as a whole."""

    def slower(owner, name: str, *, only_first: bool = False) -> None:
        function, calls = getattr(owner, name), [0]

        def wrapped(*args, **kwargs):
            calls[0] += 1
            if calls[0] == 1 or not only_first:
                time.sleep(seconds)
            return function(*args, **kwargs)

        setattr(owner, name, wrapped)

    slower(NativeEngine, "forward_backward", only_first=True)
    slower(SharedCheckpoints, "save")
    slower(SharedCheckpoints, "start_save")
    batches = validation.validation_batches

    def slow_batches(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            time.sleep(seconds / 3)
            yield batch

    validation.validation_batches = slow_batches


if __name__ == "__main__":
    faults, *words = sys.argv[1:]
    environment = ClusterEnvironment.from_environment()
    start = environment.restart.count if environment.restart is not None else 0
    plan = [fault.split(":") for fault in faults.split(",")]
    note(f"rank{environment.rank}.pid", str(os.getpid()))
    if plan[0][0] == "slow":
        slow_down(float(plan[0][1]))
    elif start < len(plan) and plan[start][0] != "none":
        kind, rank, step = plan[start]
        if environment.rank == int(rank):
            if kind in IN_THE_STEP:
                break_at(int(step), NativeEngine, "forward_backward", IN_THE_STEP[kind])
            else:
                break_at(int(step), TrainingData, "batch", IN_THE_DATA[kind])
    sys.exit(main(words))

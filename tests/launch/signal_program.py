"""A program for tests: `triaxial train` that waits in one phase of one rank, so that a signal comes just then.

    SIGNAL_CELL=FOLDER SIGNAL_PHASE=PHASE python signal_program.py train RECIPE [--nproc 2] ...

As a launcher it starts ranks of this program; under torchrun it is a rank. The rank that waits creates FOLDER/waits
with its process id, and goes on when FOLDER/go exists. PHASES gives the function in which it waits, and at which call.
"""

import functools
import importlib
import os
import sys
import time
from pathlib import Path

# phase: (rank that waits; the other one waits for it in a collective where there is one, function, number of the call)
PHASES = {
    "interpreter": (1, None, 1),  # before the first line of ours
    "import": (0, "launch.commands.train:read_run_config", 1),
    "join": (1, "launch.training.train_rank:join_processes", 1),
    "compile": (0, "parallel.engines.native:NativeEngine.forward_backward", 1),
    "step": (1, "parallel.engines.native:NativeEngine.forward_backward", 6),
    "evaluation": (0, "parallel.engines.native:NativeEngine.evaluate", 1),
    "save": (1, "parallel.engines.checkpoints:SharedCheckpoints.start_save", 1),
    "finish": (0, "launch.training.train_rank:report_end", 1),
}


def wait_for_the_signal():
    folder = Path(os.environ["SIGNAL_CELL"])
    if not (folder / "go").exists():  # only once in a test
        (folder / "new").write_text(str(os.getpid()))
        (folder / "new").rename(folder / "waits")
        while not (folder / "go").exists():
            time.sleep(0.02)


def wait_in(function, call):
    module, _, path = function.partition(":")
    *outer, name = path.split(".")
    owner = functools.reduce(getattr, outer, importlib.import_module(module))
    original, calls = getattr(owner, name), []

    def waiting(*args, **more):
        calls.append(1)
        if len(calls) == call:
            wait_for_the_signal()
        return original(*args, **more)

    setattr(owner, name, waiting)


def main():
    rank, function, call = PHASES[os.environ["SIGNAL_PHASE"]]
    waits = os.environ.get("RANK") == str(rank)
    if waits and function is None:
        wait_for_the_signal()
    import launch.main

    parse = launch.main.parse

    def parse_and_prepare(*args, **more):  # runs when the handlers are there
        found = parse(*args, **more)
        if "RANK" not in os.environ:
            import launch.commands.train
            from launch.processes.local_launch import launch_local

            launch.commands.train.launch_local = functools.partial(launch_local, module="signal_program")
        elif waits and function is not None:
            wait_in(function, call)
        return found

    launch.main.parse = parse_and_prepare
    return launch.main.main()


if __name__ == "__main__":
    sys.exit(main())

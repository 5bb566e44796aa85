"""A program for tests: `triaxial` with a fault in one rank, injected from outside of our code.

The first argument is the fault, as JSON:

{"rank": 1, "from_step": 3, "flip": ["exp_avg", 30]}        flip a bit of a moment ("model": a weight) after that step
{"rank": 1, "from_step": 3, "slower": 1.5}                  make each forward and backward slower by this factor
{"rank": 1, "from_step": 3, "reading_s": 0.1}               delay each reading of data by so many seconds
"""

import json
import sys
import time

import torch

from gpt.data.dataset import TrainingData
from launch.main import main
from parallel.axes.gradients import local
from parallel.engines.native import NativeEngine


def ail(fault):
    """Inject the fault into this process."""
    steps = {"done": 0}
    forward_backward, optimizer_step = NativeEngine.forward_backward, NativeEngine.optimizer_step
    read = TrainingData.read

    def slow_forward_backward(engine, *args):
        started_at = time.perf_counter()
        forward_backward(engine, *args)
        if steps["done"] >= fault["from_step"]:
            time.sleep((fault.get("slower", 1) - 1) * (time.perf_counter() - started_at))

    def flipping_step(engine, *args, **kwargs):
        result = optimizer_step(engine, *args, **kwargs)
        steps["done"] += 1
        if steps["done"] == fault["from_step"] and "flip" in fault:
            flip(engine, *fault["flip"])
        return result

    def slow_read(data, *args):
        if steps["done"] >= fault["from_step"]:
            time.sleep(fault.get("reading_s", 0))
        return read(data, *args)

    NativeEngine.forward_backward, NativeEngine.optimizer_step = slow_forward_backward, flipping_step
    TrainingData.read = slow_read


def flip(engine, kind, bit):
    """Flip a bit of the last element of the bias of a norm, or of one of its moments."""
    parameter = next(p for name, p in engine.parameters if name.endswith("norm.bias"))
    tensor = parameter.data if kind == "model" else engine.optimizer.tensors_of(parameter)[kind]
    local(tensor).view(-1)[-1:].view(torch.int32).bitwise_xor_(torch.tensor(1 << bit, dtype=torch.int32))


if __name__ == "__main__":
    fault = json.loads(sys.argv[1])
    import os

    if int(os.environ["RANK"]) == fault["rank"] and "TRIAXIAL_RESTART" not in os.environ:  # a restart has no fault
        ail(fault)
    sys.exit(main(sys.argv[2:]))

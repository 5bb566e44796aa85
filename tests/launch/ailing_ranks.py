"""A rank for tests: `triaxial` itself, of which one rank ails as the first word says (JSON), from outside of our code.

{"rank": 1, "from_step": 3, "flip": ["exp_avg", 30]}        one bit of a moment ("model": weight) flips after that step
{"rank": 1, "from_step": 3, "slower": 1.5}                  each forward and backward takes so much longer
{"rank": 1, "from_step": 3, "reading_s": 0.1}               so does each reading of data
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
    """Flip a bit of the last element of a norm's bias, or of one of its moments."""
    parameter = next(p for name, p in engine.parameters if name.endswith("norm.bias"))
    tensor = parameter.data if kind == "model" else engine.optimizer.tensors_of(parameter)[kind]
    local(tensor).view(-1)[-1:].view(torch.int32).bitwise_xor_(torch.tensor(1 << bit, dtype=torch.int32))


if __name__ == "__main__":
    fault = json.loads(sys.argv[1])
    import os

    if int(os.environ["RANK"]) == fault["rank"] and "TRIAXIAL_RESTART" not in os.environ:  # a restart is well again
        ail(fault)
    sys.exit(main(sys.argv[2:]))

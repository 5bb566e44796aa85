"""A rank of a real `triaxial train` whose third step starts work that does not end: a kernel on a GPU, else a sleep.

python hung_step.py train RECIPE ...
"""

import sys
import time

import torch

from gpt.losses.batch import Batch
from launch.main import main
from parallel.engines.native import NativeEngine

STEP = 3


def hang_in_the_step() -> None:
    forward_backward, calls = NativeEngine.forward_backward, [0]

    def hung(engine: NativeEngine, batch: Batch) -> None:
        calls[0] += 1
        if calls[0] == STEP:
            print(f"HUNG AT {time.monotonic()}", flush=True)
            if engine.mesh.device.type == "cuda":
                for _ in range(64):
                    torch.cuda._sleep(2**62)  # cycles; the next wait for the device does not return
            else:
                time.sleep(1e6)
        forward_backward(engine, batch)

    NativeEngine.forward_backward = hung  # type: ignore[method-assign]


if __name__ == "__main__":
    hang_in_the_step()
    sys.exit(main(sys.argv[1:]))

"""A program for tests: `triaxial train` in which the loss is NaN at fixed steps.

    python soak_program.py EVERY train RECIPE --nproc N ...

As a launcher it starts ranks of this program. At each step that EVERY divides, the loss of rank 1's first micro-batch
becomes NaN. All ranks must skip such a step, also when a restart repeats it.
"""

import functools
import os
import sys

import launch.commands.train
from gpt.training.loop import TrainingLoop
from launch.main import main
from launch.processes.local_launch import launch_local
from parallel.axes.stage import ModelStage


def break_steps(every):
    due = {"now": False}
    take_step, forward = TrainingLoop.take_step, ModelStage.forward

    def watched_step(loop, *args):
        due["now"] = (loop.state.step + 1) % every == 0
        return take_step(loop, *args)

    def broken_forward(stage, *args, **kwargs):
        out = forward(stage, *args, **kwargs)
        if due["now"]:
            due["now"] = False
            loss_sum, count = stage.totals[-1]
            stage.totals[-1] = (loss_sum * float("nan"), count)
            return out * float("nan")
        return out

    TrainingLoop.take_step, ModelStage.forward = watched_step, broken_forward


if __name__ == "__main__":
    every, *words = sys.argv[1:]
    if "RANK" not in os.environ:
        launch.commands.train.launch_local = lambda nproc, argv, **more: functools.partial(
            launch_local, module="soak_program"
        )(nproc, [every, *argv], **more)
    elif os.environ["RANK"] == "1":
        break_steps(int(every))
    sys.exit(main(words))

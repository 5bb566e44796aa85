"""A program for tests: `triaxial` on the CPU with Megatron-core, whose CUDA calls are answered there.

    python megatron_train_program.py train RECIPE --parallel.engine megatron [--nproc 2] ...

tests/parallel/megatron_on_cpu.py answers them. As a launcher it starts ranks of this program.
"""

import functools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parallel"))
import megatron_on_cpu


def main():
    import launch.commands.train
    import launch.main
    from launch.processes.local_launch import launch_local

    megatron_on_cpu.install()
    if "RANK" not in os.environ:
        launch.commands.train.launch_local = functools.partial(launch_local, module="megatron_train_program")
    return launch.main.main()


if __name__ == "__main__":
    sys.exit(main())

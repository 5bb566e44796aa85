"""`triaxial` with megatron-core's CUDA calls answered on the CPU, in this process and in the ranks of `parity`.

    python megatron_parity.py parity RECIPE --engines native,megatron ...

The ranks are forked from a process that has imported this module.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel"))

from megatron_on_cpu import install

import launch.parity.ranks
from launch.main import main

install()

if __name__ == "__main__":
    launch.parity.ranks.PRELOAD = (*launch.parity.ranks.PRELOAD, "megatron_parity")
    sys.exit(main(sys.argv[1:]))

"""Start the ranks of one node of a run, as torchrun does, with a rendezvous that only the job itself can write.

    python -m launch.torchrun --nnodes 4 --nproc-per-node 8 --rdzv-endpoint HOST:29500 -m launch.main train gpt3_1.3b

All options are torchrun's. On several nodes TRIAXIAL_JOB_SECRET must hold the same secret on each; on one node nothing
listens beyond the loopback interface.
"""

import sys
from typing import Any

from gpt.errors import ConfigError
from launch.processes.environment import JOB_SECRET, set_for_ranks
from launch.processes.sealing import BACKEND, new_secret, register_rendezvous, shared_secret


def main(argv: list[str]) -> int:
    """Run torchrun with these arguments; returns 2 for a user's mistake and 1 for a failed rank or rendezvous."""
    from torch.distributed import run as torch_run
    from torch.distributed.elastic.multiprocessing.errors import record
    from torch.distributed.elastic.rendezvous import RendezvousStateError

    try:
        parser: Any = torch_run.get_args_parser()
        arguments = parser.parse_args(argv)
        nodes = torch_run.parse_min_max_nnodes(arguments.nnodes)[1]
        if nodes > 1 and not arguments.rdzv_endpoint:
            raise ConfigError("--rdzv-endpoint is missing: must be HOST:PORT of one node, the same on every node")
        set_for_ranks({JOB_SECRET: new_secret() if nodes == 1 else shared_secret()}, one_node=nodes == 1)
        register_rendezvous()
        arguments.rdzv_backend, arguments.standalone = BACKEND, False
        if nodes == 1:
            arguments.local_addr = "127.0.0.1"
        record(torch_run.run)(arguments)
    except (ConfigError, RendezvousStateError) as error:
        print(f"triaxial: error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

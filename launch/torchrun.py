"""Start the ranks of one node of a run, as torchrun does, with a rendezvous that only the job itself can write.

    python -m launch.torchrun --nnodes 4 --nproc-per-node 8 --rdzv-endpoint HOST:29500 -m launch.main train gpt3_1.3b

All options are torchrun's. On several nodes TRIAXIAL_JOB_SECRET must hold the same secret on each; on one node nothing
listens beyond the loopback interface. Signals reach the ranks once, and the exit status is that of `triaxial train`.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gpt.errors import ConfigError
from gpt.files.temporary import temporary_folder
from launch.processes.environment import JOB_SECRET, LauncherEnvironment, quiet_elastic_logs, set_for_ranks
from launch.processes.error_reports import forget_stop, last_word, leave_word
from launch.processes.failures import MISTAKE, SAVED_AFTER_SIGNAL, STOP_SIGNALS, handled_signals, signal_name
from launch.processes.sealing import BACKEND, new_secret, register_rendezvous, shared_secret

SHUTDOWN_S = 270  # how long signalled ranks may take to save; less than the five minutes of slurm/train.sbatch


class _Signalled(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


def main(argv: list[str]) -> int:
    """Run torchrun with these arguments. Status: 0; 2 for a user's mistake; SAVED_AFTER_SIGNAL; 128 + n for a signal
    after which nothing was saved; 1 for a failed rank or rendezvous, which torchrun describes."""
    with _signals_raise(_Signalled), temporary_folder() as folder:
        if LauncherEnvironment.from_environment().saved_file is None:
            set_for_ranks({"TRIAXIAL_SAVED_FILE": str(folder.path / "saved")}, one_node=False)
        try:
            return _run(argv)
        except _Signalled as error:
            print(f"triaxial: the launcher of this node got {signal_name(error.number)}", file=sys.stderr, flush=True)
            if not last_word():
                leave_word("stopped by a signal before the ranks started")
            ends = {"stopped": SAVED_AFTER_SIGNAL, "saved": SAVED_AFTER_SIGNAL, "done": 0}
            by_signal = 128 + error.number
            return ends.get(last_word(), by_signal) if error.number in STOP_SIGNALS else by_signal


def _run(argv: list[str]) -> int:
    from torch.distributed import run as torch_run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousStateError

    try:
        parser: Any = torch_run.get_args_parser()
        parser.set_defaults(signals_to_handle="", shutdown_timeout=SHUTDOWN_S)  # they are handled here
        arguments = parser.parse_args(argv)
        nodes = torch_run.parse_min_max_nnodes(arguments.nnodes)[1]
        if nodes > 1 and not arguments.rdzv_endpoint:
            raise ConfigError("--rdzv-endpoint is missing: must be HOST:PORT of one node, the same on every node")
        set_for_ranks({JOB_SECRET: new_secret() if nodes == 1 else shared_secret()}, one_node=nodes == 1)
        register_rendezvous()
        arguments.rdzv_backend, arguments.standalone = BACKEND, False
        if nodes == 1:
            arguments.local_addr = "127.0.0.1"
        quiet_elastic_logs()
        with _signals_raise(lambda number: SignalException(signal_name(number), signal.Signals(number))):
            run: Any = torch_run.run
            run(arguments)
    except SignalException as error:
        raise _Signalled(int(error.sigval)) from None
    except ChildFailedError as error:
        return _status_of_failures({failure.exitcode for failure in error.failures.values()}, str(error))
    except (ConfigError, RendezvousStateError) as error:
        print(f"triaxial: error: {error}", file=sys.stderr, flush=True)
        return MISTAKE if isinstance(error, ConfigError) else 1
    return 0


def _status_of_failures(codes: set[int], description: str) -> int:
    """The exit status if ranks of this node ended with these exit codes. Prints what torchrun says of a failure."""
    if last_word() == "saved" or codes <= {SAVED_AFTER_SIGNAL, *(-number for number in STOP_SIGNALS)}:
        return SAVED_AFTER_SIGNAL
    if MISTAKE in codes:
        return MISTAKE
    forget_stop()  # torch elastic ends the other ranks with SIGTERM when one fails
    print(description, file=sys.stderr, flush=True)
    return 1


@contextmanager
def _signals_raise(make_error: Callable[[int], BaseException]) -> Iterator[None]:
    """Inside the block, the first signal raises an error, and further ones are ignored.

    With torchrun's own handlers, the second signal interrupts the wait for the ranks, and the third ends them however
    far they are with saving; a signal before they are installed kills. A SIGHUP that is ignored (nohup) stays ignored.
    """
    came: list[int] = []

    def raise_once(number: int, frame: FrameType | None) -> None:
        if not came:
            came.append(number)
            raise make_error(number)

    before = {n: signal.signal(n, raise_once) for n in handled_signals(signal.SIGINT, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

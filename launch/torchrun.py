"""Start the ranks of one node of a run, as torchrun does, with a rendezvous that only the job itself can write.

    python -m launch.torchrun --nnodes 4 --nproc-per-node 8 --rdzv-endpoint HOST:29500 -m launch.main train gpt3_1.3b

The options are torchrun's, except --rdzv-backend, --node-rank, --master-addr and --master-port.
On several nodes TRIAXIAL_JOB_SECRET must hold the same secret on each; on one node nothing listens beyond the loopback
interface. Signals reach the ranks once, and the exit status is that of `triaxial train`.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from gpt.errors import ConfigError, one_line
from gpt.files.temporary import temporary_folder
from gpt.telemetry.output import own_output
from launch.processes.environment import JOB_SECRET, LauncherEnvironment, quiet_elastic_logs, set_for_ranks
from launch.processes.error_reports import last_word, leave_word
from launch.processes.failures import (
    INTERRUPTED,
    MISTAKE,
    SAVED_AFTER_SIGNAL,
    STOP_SIGNALS,
    handled_signals,
    signal_name,
)
from launch.processes.sealing import BACKEND, new_secret, register_rendezvous, shared_secret

SHUTDOWN_S = 270  # how long signalled ranks may take to save; less than the five minutes of slurm/train.sbatch
_OTHER_RENDEZVOUS = {"rdzv_backend": BACKEND, "node_rank": 0, "master_addr": None, "master_port": None}  # and defaults


class _Signalled(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


class _Signals:
    """The first signal raises an error of `make_error`, a _Signalled. Further ones, and all after `end`, are ignored.

    With torchrun's own handlers, the second signal interrupts the wait for the ranks, and the third ends them even
    while they save; a signal before they are installed kills.
    """

    def __init__(self) -> None:
        self.make_error: Callable[[int], BaseException] = _Signalled
        self._has_ended = False

    def end(self) -> None:
        self._has_ended = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self._has_ended:
            self.end()
            raise self.make_error(number)


def main(argv: list[str] | None = None) -> int:
    """Run torchrun with these arguments; None: those of this process, which ends with the status.

    Status: 0; 2 for a user's mistake; SAVED_AFTER_SIGNAL; 128 + n for a signal after which nothing was saved; 1 for a
    failed rank or rendezvous.
    """
    own_output(waits=False)
    with _handled_signals(is_process=argv is None) as signals, ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder())
            if LauncherEnvironment.from_environment().saved_file is None:
                set_for_ranks({"TRIAXIAL_SAVED_FILE": str(folder.path / "saved")}, one_node=False)
            status = _run(sys.argv[1:] if argv is None else argv, signals, folder.path)
            signals.end()
        except BaseException as raised:
            error = _signal_behind(raised)
            if error is None:
                raise
            print(f"triaxial: the launcher of this node got {signal_name(error.number)}", file=sys.stderr, flush=True)
            if not last_word():
                leave_word("stopped by a signal before the ranks started")
            ends = {"stopped": SAVED_AFTER_SIGNAL, "saved": SAVED_AFTER_SIGNAL, "interrupted": INTERRUPTED}
            word, status = last_word(), 128 + error.number
            if word == "done":
                return 0
            return ends.get(word, status) if error.number in STOP_SIGNALS else status
        return status


def _signal_behind(error: BaseException | None) -> _Signalled | None:
    """The signal that an error is, or during whose handling it was raised.

    torch elastic's `finally` blocks read variables that a signal may have kept from being set.
    """
    while error is not None and not isinstance(error, _Signalled):
        error = error.__context__
    return error


def _run(argv: list[str], signals: _Signals, folder: Path) -> int:
    from torch.distributed import run as torch_run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    where = ""
    try:
        arguments, nodes = _arguments(argv, folder)
        set_for_ranks({JOB_SECRET: new_secret() if nodes == 1 else shared_secret()}, one_node=nodes == 1)
        register_rendezvous()
        quiet_elastic_logs()
        signals.make_error = _elastic_error()
        where = f"{arguments.nnodes.replace(':', ' to ')} nodes at {arguments.rdzv_endpoint}"
        if nodes > 1:
            print(f"triaxial: waiting for {where}", file=sys.stderr, flush=True)
        run: Any = torch_run.run
        run(arguments)
    except ChildFailedError as error:
        return _status_of_failures({failure.exitcode for failure in error.failures.values()}, str(error))
    except ConfigError as error:
        print(f"triaxial: error: {error}", file=sys.stderr, flush=True)
        return MISTAKE
    except RendezvousError as error:
        return _status_without_rendezvous(error, where)
    return 0


def _arguments(argv: list[str], folder: Path) -> tuple[Any, int]:
    """The parsed arguments, and the largest number of nodes. `folder`: for torch's logs, which torch itself leaves.

    ConfigError: an option of another rendezvous, or a value that torchrun refuses.
    """
    from torch.distributed import run as torch_run

    parser: Any = torch_run.get_args_parser()
    parser.set_defaults(signals_to_handle="", shutdown_timeout=SHUTDOWN_S)  # they are handled here
    parser.set_defaults(**dict.fromkeys(_OTHER_RENDEZVOUS))
    arguments = parser.parse_args(argv)
    for name, default in _OTHER_RENDEZVOUS.items():
        if (value := getattr(arguments, name)) is not None:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} = {value} is invalid: launch.torchrun has one kind of rendezvous, which numbers the nodes. "
                f"Leave {option} out, and give --rdzv-endpoint HOST:PORT"
            )
        setattr(arguments, name, default)
    try:
        nodes = torch_run.parse_min_max_nnodes(arguments.nnodes)[1]
        if nodes > 1 and (arguments.standalone or not arguments.rdzv_endpoint):
            raise ConfigError("--rdzv-endpoint is missing: must be HOST:PORT of one node, the same on every node")
        if nodes == 1:
            arguments.local_addr, arguments.rdzv_endpoint = "127.0.0.1", "none"  # torch warns if there is no endpoint
        arguments.standalone, arguments.log_dir = False, arguments.log_dir or str(folder / "logs")
        check: Any = torch_run.config_from_args
        check(arguments)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"an option of torchrun is invalid: {error}. See `python -m launch.torchrun --help`"
        ) from None
    return arguments, nodes


def _elastic_error() -> Callable[[int], BaseException]:
    """A maker of errors at which torch elastic stops the ranks: a _Signalled that is also its SignalException."""
    from torch.distributed.elastic.multiprocessing import SignalException

    class ElasticSignalled(SignalException, _Signalled):
        def __init__(self, number: int) -> None:
            # What the agent passes on. A step of srun gives SIGINT to the ranks too, and a second one would end them.
            passed_on = signal.SIGTERM if number == signal.SIGINT else number
            super().__init__(signal_name(number), signal.Signals(passed_on))
            self.number = number

    return ElasticSignalled


def _status_of_failures(codes: set[int], description: str) -> int:
    """The exit status if ranks of this node ended with these exit codes. Prints torchrun's description of a failure."""
    if last_word() == "interrupted" or codes == {INTERRUPTED}:
        return INTERRUPTED
    if last_word() == "saved" or codes <= {SAVED_AFTER_SIGNAL, *(-number for number in STOP_SIGNALS)}:
        return SAVED_AFTER_SIGNAL
    if MISTAKE in codes:
        return MISTAKE
    leave_word("failed")  # a "stopped" means nothing, before or after: torch elastic ends the other ranks with SIGTERM
    print(description, file=sys.stderr, flush=True)
    return 1


def _status_without_rendezvous(error: Exception, where: str) -> int:
    """The exit status if the nodes did not meet, at the start or after the ranks of this node had ended. `where`: the
    number of nodes and the endpoint. Prints a failure."""
    from torch.distributed.elastic import rendezvous

    ends = {
        **{"saved": SAVED_AFTER_SIGNAL, "stopped": SAVED_AFTER_SIGNAL},
        **{"interrupted": INTERRUPTED, "mistake": MISTAKE},
    }
    if last_word() in ends:
        return ends[last_word()]
    reasons: dict[type[Exception], str] = {
        rendezvous.RendezvousConnectionError: "no launcher answers there. Start the node of that address first, and "
        "open its port",
        rendezvous.RendezvousTimeoutError: "not all came in time. Start the others, or look why they ended",
        rendezvous.RendezvousClosedError: "another node has ended the run. Its output says why",
    }
    reason = reasons.get(type(error))
    line = f"cannot meet {where}: {reason}" if reason else one_line(str(error))
    print(f"triaxial: error: {line}", file=sys.stderr, flush=True)
    return 1


@contextmanager
def _handled_signals(*, is_process: bool) -> Iterator[_Signals]:
    """Inside the block, the first signal raises an error. A SIGHUP that is ignored (nohup) stays ignored.

    `is_process`: this process then ends, and ignores signals until its end: its exit status is decided.
    """
    signals = _Signals()
    before = {n: signal.signal(n, signals.handle) for n in handled_signals(signal.SIGINT, signal.SIGQUIT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if is_process else handler)


if __name__ == "__main__":
    sys.exit(main())

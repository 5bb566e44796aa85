"""Where this process stands in the cluster and how local ranks start; alone reads the environment, never trains."""

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from gpt.errors import ConfigError

SAVED_AFTER_SIGNAL = 75  # the status of a run that saved after a signal and wants to be started again (EX_TEMPFAIL)
GRACE_S = 120  # how long signalled ranks may take to save before they are killed
FIRST_WORD_S = 5.0  # how long other ranks leave a mistake to local rank 0, so that the user reads it once
FORWARDED_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"

# Without it an in-place restart over gloo reads the addresses of the ranks that died (docs/adr, DESIGN decision 12).
RESTART_SETTINGS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# glibc hands each large freed block back to the kernel and pays a page fault for each page when it asks again.
CPU_MEMORY_SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
# What a user may set that changes how a run behaves; `triaxial doctor` shows them. None of them is a secret.
SHOWN_SETTINGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CC",
    "CXX",
    "HF_HUB_OFFLINE",
    "WANDB_MODE",
    "TRIAXIAL_SAVED_FILE",
    *RESTART_SETTINGS,
    *CPU_MEMORY_SETTINGS,
)


@dataclass(frozen=True)
class ClusterEnvironment:
    """This process among its peers, as torchrun and Slurm describe it; a plain process is rank 0 of 1.

    `agent_store`: torchrun itself keeps the store at the master's address, else rank 0 does.
    `saved_file` is where rank 0 leaves word for whoever launched it that the run saved after a signal, `error_file`
    where torch elastic looks for why this rank failed.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node_rank: int = 0
    master_addr: str | None = None
    master_port: int | None = None
    agent_store: bool = False
    restart_count: int = 0
    slurm_job_id: str | None = None
    saved_file: Path | None = None
    error_file: Path | None = None

    @classmethod
    def from_environment(cls) -> "ClusterEnvironment":
        """Read torchrun's and Slurm's variables; ConfigError when they are half there or contradict each other."""
        slurm_job_id = os.environ.get("SLURM_JOB_ID")
        saved_file = Path(os.environ["TRIAXIAL_SAVED_FILE"]) if os.environ.get("TRIAXIAL_SAVED_FILE") else None
        if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
            tasks = _whole_number("SLURM_STEP_NUM_TASKS", default=1)
            if tasks > 1:
                raise ConfigError(
                    f"srun started {tasks} tasks, but nothing told them their ranks (RANK, WORLD_SIZE): "
                    "start one torchrun a node, as slurm/train.sbatch does"
                )
            return cls(slurm_job_id=slurm_job_id, saved_file=saved_file)
        rank, world_size = _whole_number("RANK"), _whole_number("WORLD_SIZE")
        if rank >= world_size:
            raise ConfigError(f"RANK = {rank} must be below WORLD_SIZE = {world_size}; torchrun sets both")
        return cls(
            rank=rank,
            local_rank=_whole_number("LOCAL_RANK"),
            world_size=world_size,
            local_world_size=_whole_number("LOCAL_WORLD_SIZE", default=world_size),
            node_rank=_whole_number("GROUP_RANK", default=0),
            master_addr=os.environ.get("MASTER_ADDR"),
            master_port=_whole_number("MASTER_PORT"),
            agent_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            restart_count=_whole_number("TORCHELASTIC_RESTART_COUNT", default=0),
            slurm_job_id=slurm_job_id,
            saved_file=saved_file,
            error_file=Path(os.environ["TORCHELASTIC_ERROR_FILE"]) if "TORCHELASTIC_ERROR_FILE" in os.environ else None,
        )


def slurm_array_share() -> tuple[int, int]:
    """(number of this element, number of elements) of a Slurm array; ConfigError unless its elements are 1 to N."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        raise ConfigError(
            "--executor slurm-array: SLURM_ARRAY_TASK_ID is not set; start it with sbatch --array=1-N, as "
            "slurm/prepare.sbatch does, or name the share: --share K/N"
        )
    number = _whole_number("SLURM_ARRAY_TASK_ID")
    first, last = _whole_number("SLURM_ARRAY_TASK_MIN"), _whole_number("SLURM_ARRAY_TASK_MAX")
    count = _whole_number("SLURM_ARRAY_TASK_COUNT")
    if first != 1 or last != count:
        raise ConfigError(
            f"--executor slurm-array: the array has {count} elements from {first} to {last}, and they must be 1 to N; "
            f"to start some of N again, name the share: --share {number}/N"
        )
    return number, count


def shown_settings() -> dict[str, str]:
    """Those of SHOWN_SETTINGS that are set, with their values."""
    return {name: os.environ[name] for name in SHOWN_SETTINGS if name in os.environ}


# ---- what a rank does ------------------------------------------------------------------------------------------------


def enter_process() -> None:
    """First thing in every `triaxial` process: a launched rank dies with its launcher and leaves word of its crash.

    A process that nobody launched is left as it is, but for torch's profiler, which would tell the terminal of each
    step that it measures.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read when torch is loaded
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
        sys.excepthook = _record_and_print


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, even by kill -9 (Linux; elsewhere nothing happens).

    Otherwise ranks of a killed torchrun live on, holding their GPUs and waiting in collectives.
    """
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, from linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)
    launcher = os.environ.get("TRIAXIAL_LAUNCHER_PID")
    if launcher is not None and int(launcher) != os.getppid():
        os._exit(1)  # the launcher ended before the kernel knew of our wish


def keep_freed_memory() -> None:
    """Make glibc keep freed memory: what CPU_MEMORY_SETTINGS does for a child, for this process, already running.

    Saves a page fault for every page of every large tensor of every step on the CPU. Other C libraries: no effect.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD, from malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def share_machine(nproc: int) -> None:
    """Before it joins a process group: a rank of `nproc` local ones talks to no other machine and takes its part of the
    cores, as `launch_local` has it by the environment. What the user has set himself stays."""
    import torch

    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // nproc))


def leave_word_saved(environment: ClusterEnvironment) -> int:
    """Tell the launcher that this run saved after a signal and should start again; returns SAVED_AFTER_SIGNAL.

    torchrun hides its ranks' exit status, so rank 0 also writes `saved_file`, which slurm/train.sbatch looks for.
    """
    if environment.rank == 0 and environment.saved_file is not None:
        environment.saved_file.parent.mkdir(parents=True, exist_ok=True)
        environment.saved_file.write_text("saved after a signal\n", encoding="utf-8")
    return SAVED_AFTER_SIGNAL


def report_mistake(message: str) -> None:
    """Show a user's mistake once, however many ranks made it: main's last act before it returns 2.

    A plain process prints it. Under `launch_local` the launcher prints it. Under torchrun local rank 0 prints it, and
    the others do so only if rank 0 does not end the run within FIRST_WORD_S, since then the mistake is theirs alone.
    """
    line = f"triaxial: error: {message}"
    local_rank = os.environ.get("LOCAL_RANK", "0")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        recorded = _leave_error_file(line, details="")
        if recorded and "TRIAXIAL_LAUNCHER_PID" in os.environ:
            return
        if local_rank != "0":
            time.sleep(FIRST_WORD_S)
            line = f"triaxial: rank {os.environ.get('RANK')}: error: {message}"
    print(line, file=sys.stderr, flush=True)


def _record_and_print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    _leave_error_file(f"{kind.__name__}: {error}", details=text)
    sys.__excepthook__(kind, error, trace)


def _leave_error_file(message: str, *, details: str) -> bool:
    """Write the file by which torch elastic learns why and when a rank failed; False when there is none to write."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return False
    extra = {"py_callstack": details or message, "timestamp": str(int(time.time()))}
    try:
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")
    except OSError:  # a full disk, perhaps: the terminal is still there
        return False
    return True


def _whole_number(name: str, *, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        found = "is not set" if text is None else f"= '{text}'"
        raise ConfigError(
            f"the environment variable {name} {found}; torchrun sets it to a whole number: launch with torchrun"
        )
    return int(text)


# ---- what a launcher does --------------------------------------------------------------------------------------------


def launch_local(
    nproc: int,
    argv: Sequence[str],
    *,
    threads_per_process: int | None = None,
    module: str = "launch.main",
    grace_s: int = GRACE_S,
) -> int:
    """Run `python -m MODULE *argv` in `nproc` ranks on this machine; returns the exit status for the shell.

    Rank 0 keeps the terminal, the others' output is shown only if they fail. A SIGTERM, SIGINT, SIGHUP, SIGQUIT or
    SIGUSR1 sent to this process reaches every rank; they have `grace_s` seconds to save. Status: 0; 2 for a user's
    mistake, printed once; SAVED_AFTER_SIGNAL; 128 + n for a signal; else that of the rank that failed first.
    Call it in the main thread.
    """
    if nproc < 1:
        raise ConfigError(f"--nproc {nproc}: the number of local processes must be 1 or more")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    log_dir = Path(tempfile.mkdtemp(prefix="triaxial_"))
    saved_file = log_dir / "saved"
    in_checkout = Path.cwd() == Path(__file__).resolve().parents[1]
    # -P: a folder of the user's that happens to be called gpt must not shadow ours
    command = [*([] if in_checkout else ["-P"]), "-m", module, *argv]
    keep_logs = False
    settings = _child_settings(nproc, threads_per_process, saved_file=saved_file)
    try:
        with _launch_environment(settings), _own_signal_handlers():
            quiet_elastic_logs()
            launch = elastic_launch(_launch_config(nproc, log_dir=log_dir, grace_s=grace_s), sys.executable)
            launch(*(word.replace("$", "$$") for word in command))  # elastic expands ${macros} in the words
        return 0
    except ChildFailedError as error:
        if {failure.exitcode for failure in error.failures.values()} == {SAVED_AFTER_SIGNAL}:
            return SAVED_AFTER_SIGNAL
        status = _explain(error.failures, nproc=nproc, log_dir=log_dir)
        keep_logs = status != 2
        return status
    except SignalException as error:
        return SAVED_AFTER_SIGNAL if saved_file.exists() else 128 + int(error.sigval)
    finally:
        if not keep_logs:
            shutil.rmtree(log_dir, ignore_errors=True)


def quiet_elastic_logs() -> None:
    """Silence the elastic launcher's own log lines, unless the user set LOGLEVEL: we say it in our words."""
    if "LOGLEVEL" not in os.environ:
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic") or name.startswith("torch.distributed.launcher"):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _launch_config(nproc: int, *, log_dir: Path, grace_s: int) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    others = dict.fromkeys(range(1, nproc), Std.ALL)
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # a free port
        local_addr="127.0.0.1",  # this machine's name need not resolve
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(log_dir), redirects=others),
        signals_to_handle=FORWARDED_SIGNALS,
        shutdown_timeout=grace_s,
    )


def _child_settings(nproc: int, threads: int | None, *, saved_file: Path) -> dict[str, str]:
    """Environment variables for the ranks; what the user has set himself stays."""
    import torch

    defaults = dict(RESTART_SETTINGS)
    if not torch.cuda.is_available():
        defaults |= CPU_MEMORY_SETTINGS
    if Path("/sys/class/net/lo").exists():
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # local ranks need no other interface, nor listen on one
    defaults["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // nproc))
    settings = {name: value for name, value in defaults.items() if name not in os.environ}
    if threads is not None:
        settings["OMP_NUM_THREADS"] = str(threads)
    return settings | {"TRIAXIAL_SAVED_FILE": str(saved_file), "TRIAXIAL_LAUNCHER_PID": str(os.getpid())}


@contextlib.contextmanager
def _launch_environment(settings: Mapping[str, str]) -> Iterator[None]:
    """While inside, this process has the settings: torch elastic gives ranks no other environment than its own."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Put back the signal handlers that torch elastic replaces and leaves."""
    before = {number: signal.getsignal(getattr(signal, number)) for number in FORWARDED_SIGNALS.split(",")}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(getattr(signal, number), handler)


def _explain(failures: Mapping[int, Any], *, nproc: int, log_dir: Path) -> int:
    """Tell the user which rank failed first and why; returns the exit status. `failures`: rank to ProcessFailure."""
    # when one rank has failed the launcher ends the others with SIGTERM, at which a training rank saves and stops
    asked_to_stop = (-int(signal.SIGTERM), SAVED_AFTER_SIGNAL)
    causes = {rank: failure for rank, failure in failures.items() if failure.exitcode not in asked_to_stop} or failures
    verdict = {words for words in map(_watchdog_words, causes.values()) if words}
    # the watchdog's kills follow from a fault that is another rank's, or, when all were killed so, in its words
    causes = {rank: failure for rank, failure in causes.items() if not _watchdog_words(failure)}
    if not causes:
        print(f"{min(verdict)}\ntriaxial: output of the ranks: {log_dir}", file=sys.stderr, flush=True)
        return 128 + int(signal.SIGKILL)
    rank, first = min(causes.items(), key=_failed_at)
    recorded = first.error_file_data.get("message")
    if first.exitcode == 2 and isinstance(recorded, dict):
        print(recorded["message"], file=sys.stderr, flush=True)
        return 2
    print(f"triaxial: error: rank {rank} of {nproc} failed first ({exit_words(first.exitcode)})", file=sys.stderr)
    if rank == 0:
        print("triaxial: what it said is above", file=sys.stderr)
    for path in sorted(log_dir.glob(f"*/attempt_*/{rank}/stderr.log")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]:
            print(f"[rank {rank}] {line}", file=sys.stderr)
    print(f"triaxial: output of the other ranks: {log_dir}", file=sys.stderr, flush=True)
    return int(first.exitcode) if first.exitcode > 0 else 128 - int(first.exitcode)


def _watchdog_words(failure: Any) -> str | None:
    """Why the watchdog killed a rank; None where something else ended it."""
    recorded = failure.error_file_data.get("message")
    told = isinstance(recorded, dict) and recorded.get("extraInfo", {}).get("watchdog")
    return str(recorded["message"]) if told and failure.exitcode == -signal.SIGKILL else None


def exit_words(exitcode: int) -> str:
    """How a process ended, from its exit status, or minus the number of the signal that killed it."""
    if exitcode >= 0:
        return f"exit status {exitcode}"
    perhaps = ", perhaps for want of memory" if exitcode == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-exitcode).name}{perhaps}"


def _failed_at(item: tuple[int, Any]) -> tuple[bool, float, int]:
    """Order of failures, first cause first: a killed rank leaves no word, and its peers' broken connections follow."""
    rank, failure = item
    path = Path(failure.error_file)
    failed_at = path.stat().st_mtime if path.is_file() else float(failure.timestamp)
    return failure.exitcode > 0, failed_at, rank

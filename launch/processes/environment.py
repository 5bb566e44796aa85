"""Where this process stands in the cluster and how local ranks start; alone reads the environment, never trains."""

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from gpt.errors import ConfigError
from launch.processes.failures import MISTAKE, SAVED_AFTER_SIGNAL, without_secrets
from launch.processes.restarts import Restart

FIRST_WORD_S = 5.0  # how long other ranks leave a mistake to local rank 0, so that the user reads it once

# Without it an in-place restart over gloo reads the addresses of the ranks that died (docs/adr, DESIGN decision 12).
RESTART_SETTINGS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# glibc hands each large freed block back to the kernel and pays a page fault for each page when it asks again.
CPU_MEMORY_SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
# Two buffers for cuBLAS, and NCCL without sums inside of switches, whose order is nobody's: read at their first use.
DETERMINISTIC_SETTINGS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "^NVLS,NVLSTree"}
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
    *DETERMINISTIC_SETTINGS,
)


@dataclass(frozen=True)
class ClusterEnvironment:
    """This process among its peers, as torchrun and Slurm describe it; a plain process is rank 0 of 1.

    `agent_store`: torchrun itself keeps the store at the master's address, else rank 0 does. `restart`: the launcher
    started these ranks in place of ones that failed.
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
    restart: Restart | None = None
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
            restart=_restart(),
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


def enter_process(*, is_command: bool = True) -> None:
    """First thing in every `triaxial` process: a launched rank dies with its launcher and leaves word of its crash.

    A rank that torchrun starts again after a user's mistake leaves at once with the same status. A process that nobody
    launched is left as it is, but for torch's profiler, which would tell the terminal of each step that it measures,
    and, where it `is_command` and no program of the user's, that its crash is told without secrets.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read when torch is loaded
    if is_command:
        sys.excepthook = _record_and_print
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
        sys.excepthook = _record_and_print
        if _mistake_before_restart():
            os._exit(MISTAKE)  # torchrun knows no failure that another start would not mend


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


def stay_offline() -> None:
    """Before Hugging Face's libraries are imported: they take data from this machine, where they would try for minutes
    to reach another, each rank by itself. HF_HUB_OFFLINE=0 lets them."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


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


def bootstrap_in_this_process() -> None:
    """Have lm-evaluation-harness find the standard errors that have no formula without processes of its own, which it
    would fork from a rank and its threads. What the user has set himself stays."""
    os.environ.setdefault("DISABLE_MULTIPROC", "1")


def make_libraries_deterministic() -> None:
    """Before the first use of CUDA: have cuBLAS and NCCL give the same bits each time. What the user has set himself
    stays; ConfigError where cuBLAS could not then."""
    for name, value in DETERMINISTIC_SETTINGS.items():
        os.environ.setdefault(name, value)
    found = os.environ["CUBLAS_WORKSPACE_CONFIG"]
    if found not in (":4096:8", ":16:8"):
        raise ConfigError(
            f"run.deterministic = true: the environment variable CUBLAS_WORKSPACE_CONFIG = '{found}' lets cuBLAS give "
            f"other bits each time; unset it, or set :4096:8"
        )


def leave_word_saved(environment: ClusterEnvironment) -> int:
    """Tell the launcher that this run saved after a signal and should start again; returns SAVED_AFTER_SIGNAL.

    torchrun hides its ranks' exit status, so rank 0 also writes `saved_file`, which slurm/train.sbatch looks for.
    """
    if environment.rank == 0 and environment.saved_file is not None:
        environment.saved_file.parent.mkdir(parents=True, exist_ok=True)
        environment.saved_file.write_text("saved after a signal\n", encoding="utf-8")
    return SAVED_AFTER_SIGNAL


@contextlib.contextmanager
def early_warning_ends(environment: ClusterEnvironment) -> Iterator[None]:
    """While inside, SIGUSR1, which comes before a time limit, ends a rank that does not train yet, or no more, as it
    ends one that trains: all that there is to save is saved, and the job is to start again. In the main thread only.

    SIGTERM goes on killing: a launcher that saw a rank die sends it to the others, and should not have to wait.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        if environment.rank == 0:
            print("triaxial: told to stop while it did not train: nothing is lost", file=sys.stderr, flush=True)
        raise SystemExit(leave_word_saved(environment))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def report_mistake(message: str, *, exit_status: int = MISTAKE) -> None:
    """Show a user's mistake once, however many ranks made it: main's last act before it returns `exit_status`.

    A plain process prints it. Under `launch_local` the launcher prints it. Under torchrun local rank 0 prints it, and
    the others do so only if rank 0 does not end the run within FIRST_WORD_S, since then the mistake is theirs alone.
    """
    message = without_secrets(message, os.environ)
    line = f"triaxial: error: {message}"
    local_rank = os.environ.get("LOCAL_RANK", "0")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        recorded = _leave_error_file(line, exit_status=exit_status)
        if recorded and "TRIAXIAL_LAUNCHER_PID" in os.environ:
            return
        if local_rank != "0":
            time.sleep(FIRST_WORD_S)
            line = f"triaxial: rank {os.environ.get('RANK')}: error: {message}"
    print(line, file=sys.stderr, flush=True)


def _record_and_print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = without_secrets("".join(traceback.format_exception(kind, error, trace)), os.environ)
    recorded = _leave_error_file(without_secrets(f"{kind.__name__}: {error}", os.environ), details=text)
    if recorded and "TRIAXIAL_LAUNCHER_PID" in os.environ and os.environ.get("LOCAL_RANK") == "0":
        return  # the launcher shows it, if it is what failed first and no mere echo of a peer's death
    print(text, end="", file=sys.stderr, flush=True)


def _mistake_before_restart() -> bool:
    """Whether a rank of this node ended with a user's mistake in the start before this one, of the same torchrun."""
    restarts, path = _whole_number("TORCHELASTIC_RESTART_COUNT", default=0), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if restarts == 0 or not path:
        return False
    attempt = Path(path).parents[1]  # .../attempt_N/LOCAL_RANK/error.json
    before = attempt.with_name(f"attempt_{restarts - 1}")
    for file in before.glob("*/error.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(file.read_text(encoding="utf-8"))["message"]["extraInfo"]["exit_status"] == MISTAKE:
                shutil.copyfile(file, path)  # for the start after this one, and for torchrun's own report
                return True
    return False


def _restart() -> Restart | None:
    """What our launcher says of the start before this one, or that torchrun counts."""
    if os.environ.get("TRIAXIAL_RESTART"):
        return Restart(**json.loads(os.environ["TRIAXIAL_RESTART"]))
    count = _whole_number("TORCHELASTIC_RESTART_COUNT", default=0)
    return Restart(count, _whole_number("TORCHELASTIC_MAX_RESTARTS", default=count)) if count else None


def _leave_error_file(message: str, *, details: str = "", exit_status: int = 1) -> bool:
    """Write the file by which torch elastic learns why and when a rank failed; False when there is none to write."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return False
    extra = {"py_callstack": details, "timestamp": str(int(time.time())), "exit_status": exit_status}
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


def quiet_elastic_logs() -> None:
    """Silence the elastic launcher's own log lines, unless the user set LOGLEVEL: we say it in our words."""
    if "LOGLEVEL" not in os.environ:
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic") or name.startswith("torch.distributed.launcher"):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def child_settings(nproc: int, threads: int | None, *, saved_file: Path) -> dict[str, str]:
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
def launch_environment(settings: Mapping[str, str]) -> Iterator[None]:
    """While inside, this process has the settings: torch elastic gives ranks no other environment than its own."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

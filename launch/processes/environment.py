"""Read and set environment variables: the only module that touches `os.environ`.

It says which rank of which job this process is, sets the variables that torch and its libraries read, and prepares
the environment of local ranks. A variable that the user has set is kept.
"""

import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from launch.processes.failures import without_secrets
from launch.processes.restarts import Restart

# Without it, an in-place restart over gloo reads the addresses of the dead ranks (docs/adr, DESIGN decision 12).
RESTART_SETTINGS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# By default glibc returns each large freed block to the kernel; the next allocation then pays a page fault per page.
CPU_MEMORY_SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
# CUDA's allocator grows its segments in place of keeping many of fixed size: less fragmentation. Read at first use.
GPU_MEMORY_SETTINGS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
# cuBLAS uses two fixed buffers. NCCL does not sum inside switches, where the order is undefined. Read at first use.
DETERMINISTIC_SETTINGS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "^NVLS,NVLSTree"}
JOB_SECRET = "TRIAXIAL_JOB_SECRET"  # only the processes of one job know it; error lines show its name instead
# Variables that change how a run behaves; `triaxial doctor` shows them. None of them is a secret.
SHOWN_SETTINGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CC",
    "CXX",
    "HF_HUB_OFFLINE",
    "WANDB_MODE",
    "TRIAXIAL_SAVED_FILE",
    "TORCH_EXTENSIONS_DIR",
    "XDG_CACHE_HOME",
    *RESTART_SETTINGS,
    *CPU_MEMORY_SETTINGS,
    *GPU_MEMORY_SETTINGS,
    *DETERMINISTIC_SETTINGS,
)


@dataclass(frozen=True)
class ClusterEnvironment:
    """This process among its peers, as torchrun and Slurm describe it; a plain process is rank 0 of 1.

    `agent_store`: torchrun itself serves the store at the master's address, else rank 0 does.
    `restart`: set if the launcher started these ranks in place of failed ones.
    `requeues`: how often Slurm has started this job again. `is_after_stop`: a signal ended the job's start before.
    `error_file`: where torch elastic looks for the reason why this rank failed. `node_name`: Slurm's name of this node.
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
    requeues: int = 0
    is_after_stop: bool = False
    error_file: Path | None = None
    node_name: str | None = None

    @classmethod
    def from_environment(cls) -> "ClusterEnvironment":
        """Read torchrun's and Slurm's variables; ConfigError if some are missing or they contradict each other."""
        slurm_job_id, requeues = os.environ.get("SLURM_JOB_ID"), _whole_number("SLURM_RESTART_COUNT", default=0)
        if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
            tasks = _whole_number("SLURM_STEP_NUM_TASKS", default=1)
            if tasks > 1:
                raise ConfigError(
                    f"srun started {tasks} tasks, but RANK and WORLD_SIZE are not set, so they have no ranks. "
                    "Start one `python -m launch.torchrun` per node, as slurm/train.sbatch does"
                )
            return cls(slurm_job_id=slurm_job_id, requeues=requeues)
        rank, world_size = _whole_number("RANK"), _whole_number("WORLD_SIZE")
        if rank >= world_size:
            raise ConfigError(f"RANK = {rank} is invalid: must be below WORLD_SIZE = {world_size}. torchrun sets both")
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
            requeues=requeues,
            is_after_stop="TRIAXIAL_AFTER_STOP" in os.environ,
            error_file=_path("TORCHELASTIC_ERROR_FILE"),
            node_name=os.environ.get("SLURMD_NODENAME"),
        )


@dataclass(frozen=True)
class LauncherEnvironment:
    """The settings that the launcher of this process wrote into its environment; all unset without a launcher.

    Unlike `ClusterEnvironment` it never raises, so that a process can report that its other variables are wrong.
    `is_elastic`: torchrun or `launch_local` started this process. `launcher_pid`: only `launch_local` sets it.
    `saved_file`: the file in which the run tells its launcher how it ended: see `leave_word`. `node_name`: of Slurm.
    """

    is_elastic: bool
    launcher_pid: int | None
    rank: str | None
    local_rank: str
    restart_count: int
    error_file: Path | None
    saved_file: Path | None
    node_name: str | None

    @classmethod
    def from_environment(cls) -> "LauncherEnvironment":
        pid, restarts = os.environ.get("TRIAXIAL_LAUNCHER_PID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
        return cls(
            is_elastic="TORCHELASTIC_RUN_ID" in os.environ,
            launcher_pid=int(pid) if pid.isdecimal() else None,
            rank=os.environ.get("RANK"),
            local_rank=os.environ.get("LOCAL_RANK", "0"),
            restart_count=int(restarts) if restarts.isdecimal() else 0,
            error_file=_path("TORCHELASTIC_ERROR_FILE"),
            saved_file=_path("TRIAXIAL_SAVED_FILE"),
            node_name=os.environ.get("SLURMD_NODENAME"),
        )


def slurm_array_share() -> tuple[int, int]:
    """(number of this element, number of elements) of a Slurm array; ConfigError unless its elements are 1 to N."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        raise ConfigError(
            "--executor slurm-array: SLURM_ARRAY_TASK_ID is not set. Start it with sbatch --array=1-N, as "
            "slurm/prepare.sbatch does, or name the share: --share K/N"
        )
    number = _whole_number("SLURM_ARRAY_TASK_ID")
    first, last = _whole_number("SLURM_ARRAY_TASK_MIN"), _whole_number("SLURM_ARRAY_TASK_MAX")
    count = _whole_number("SLURM_ARRAY_TASK_COUNT")
    if first != 1 or last != count:
        raise ConfigError(
            f"--executor slurm-array: the array has {count} elements from {first} to {last}, but they must be 1 to N. "
            f"To restart some of N, name the share: --share {number}/N"
        )
    return number, count


def shown_settings() -> dict[str, str]:
    """The variables of SHOWN_SETTINGS that are set, with their values."""
    return {name: os.environ[name] for name in SHOWN_SETTINGS if name in os.environ}


def hide_secrets(text: str) -> str:
    """The text without the values of this process's secret variables and without credentials in URLs."""
    return without_secrets(text, os.environ)


def job_secret() -> str | None:
    """The secret that the launcher of this process gave to all ranks; None if it gave none, as plain torchrun."""
    return os.environ.get(JOB_SECRET) or None


def _restart() -> Restart | None:
    """The restart that our launcher describes or that torchrun counts; None for a first start."""
    if os.environ.get("TRIAXIAL_RESTART"):
        return Restart(**decode_json(os.environ["TRIAXIAL_RESTART"]))
    count = _whole_number("TORCHELASTIC_RESTART_COUNT", default=0)
    return Restart(count, _whole_number("TORCHELASTIC_MAX_RESTARTS", default=count)) if count else None


def _path(name: str) -> Path | None:
    text = os.environ.get(name)
    return Path(text) if text else None


def _whole_number(name: str, *, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        found = "is not set" if text is None else f"= '{text}' is invalid"
        raise ConfigError(
            f"the environment variable {name} {found}: torchrun sets it to a whole number. Launch with "
            "`python -m launch.torchrun`"
        )
    return int(text)


def quiet_profiler() -> None:
    """Keep torch's profiler from printing a line for each profiled step. Call it before torch is imported."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def stay_offline() -> None:
    """Make Hugging Face's libraries use local files only, without bars of their own. Call it before they are imported.

    Otherwise each rank tries for minutes to reach the hub on a cluster without network. HF_HUB_OFFLINE=0 allows it.
    """
    if os.environ.setdefault("HF_HUB_OFFLINE", "1") != "0":
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def bootstrap_in_this_process() -> None:
    """Make lm-evaluation-harness bootstrap standard errors here: to fork is unsafe in a rank with threads."""
    os.environ.setdefault("DISABLE_MULTIPROC", "1")


def share_machine(nproc: int, secret: str) -> None:
    """Restrict one of `nproc` local ranks to the loopback interface and its part of the cores, and set their secret.

    Call it before the rank joins a process group. `launch_local` does the same through the environment.
    """
    import torch

    set_for_ranks({JOB_SECRET: secret}, one_node=True)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // nproc))


def ray_cluster(address: str | None) -> str | None:
    """The Ray cluster to join: `address`, else RAY_ADDRESS, else None: start one here. Call it before ray is imported.

    One that starts here stays on the loopback interface and, since Ray 2.52, answers only its owner, by a token. A
    cluster that Ray would find automatically is not used: any user can write the file that names it, in /tmp/ray.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # "no cluster of machines": then Ray takes 127.0.0.1
    return address


def set_unless_set(settings: Mapping[str, str]) -> dict[str, str]:
    """Set what is not set yet, before the first use of the library that reads it. Returns what had another value."""
    return {name: found for name, value in settings.items() if (found := os.environ.setdefault(name, value)) != value}


def make_libraries_deterministic() -> None:
    """Make cuBLAS and NCCL give the same bits on each run. Call it before the first use of CUDA.

    ConfigError if the user's CUBLAS_WORKSPACE_CONFIG prevents that.
    """
    set_unless_set(DETERMINISTIC_SETTINGS)
    if (found := os.environ["CUBLAS_WORKSPACE_CONFIG"]) not in (":4096:8", ":16:8"):
        raise ConfigError(
            f"run.deterministic = true: the environment variable CUBLAS_WORKSPACE_CONFIG = '{found}' lets cuBLAS give "
            f"other bits each time. Unset it, or set :4096:8"
        )


def user_chose_malloc() -> bool:
    """Return whether the user has set how glibc keeps freed memory."""
    return any(name in os.environ for name in CPU_MEMORY_SETTINGS)


def rank_environment(nproc: int, threads: int | None, *, saved_file: Path) -> dict[str, str]:
    """The environment that all `nproc` local ranks share, with `threads` each (None: an equal part)."""
    defaults = _default_settings(one_node=True)  # does not ask torch for GPUs: the import takes seconds
    defaults["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // nproc))
    defaults["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "1"  # as torchrun sets it
    settings = {**defaults, **os.environ}
    if threads is not None:
        settings["OMP_NUM_THREADS"] = str(threads)
    of_torchrun = [name for name in settings if name.startswith("TORCHELASTIC_")]
    for name in (*of_torchrun, "TRIAXIAL_RESTART"):  # of a launcher around this one
        settings.pop(name, None)
    return settings | {"TRIAXIAL_SAVED_FILE": str(saved_file), "TRIAXIAL_LAUNCHER_PID": str(os.getpid())}


def set_for_ranks(settings: Mapping[str, str], *, one_node: bool) -> None:
    """Set these and the defaults for all ranks that this process will start; on one node keep them on loopback."""
    os.environ.update(settings)
    set_unless_set(_default_settings(one_node=one_node))


def _default_settings(*, one_node: bool) -> dict[str, str]:
    """Of all ranks. Local ranks need only the loopback interface; "=" means exactly this name, not a prefix."""
    settings = dict(RESTART_SETTINGS)
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the user's, by the old name, which wins over the new one
        settings |= GPU_MEMORY_SETTINGS
    if one_node and Path("/sys/class/net/lo").exists():
        settings |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
    return settings


def quiet_elastic_logs() -> None:
    """Silence torch elastic, once imported, unless the user set LOGLEVEL: launch.torchrun reports failures itself."""
    if "LOGLEVEL" not in os.environ:
        for name in list(logging.root.manager.loggerDict):
            if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)

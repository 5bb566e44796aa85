"""Collect what this machine offers for training: devices, packages, memory, limits. Uses no network."""

import importlib.metadata
import os
import platform
import re
import shutil
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.engines.installed import EngineFacts, engines_found, stale_locks
from launch.preflight.links import first_in, links
from launch.processes.environment import shown_settings

DEPENDENCY = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)\s*(?P<range>[<>=!~0-9.,\s]*)(?:;.*extra == ['\"](?P<extra>\w+)['\"].*)?$"
)
# File systems that other machines can mount too.
SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "wekafs", "9p", "glusterfs", "orangefs")
N_PARTS = 4  # of `collect`: software, links, torch, speed
MINIMUM = re.compile(r">=\s*([0-9.]+)")


@dataclass(frozen=True)
class Device:
    """One GPU; memory in bytes. `capability`: its generation as CUDA counts, (9, 0) for an H100."""

    name: str
    memory_bytes: int
    bf16: bool
    capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Package:
    """A dependency: minimum version, version found or None, and the extra that installs it ("" for the core)."""

    name: str
    minimum: str
    extra: str
    version: str | None

    @property
    def too_old(self) -> bool:
        """True if the version found is below the minimum."""
        return self.version is not None and _numbers(self.version) < _numbers(self.minimum)


@dataclass(frozen=True)
class Facts:
    """The facts about this machine. Sizes in bytes; None if unknown."""

    python: str
    torch: str | None
    torch_build: str
    cpu: str
    cores: int
    gpus: tuple[Device, ...]
    links: dict[str, str]
    backends: tuple[str, ...]
    bf16_on_cpu: str
    matmul_gflops: dict[str, float]
    packages: tuple[Package, ...]
    engines: tuple[EngineFacts, ...]
    stale_locks: tuple[str, ...]
    torch_threads: int
    settings: dict[str, str]
    memory_free_bytes: int | None
    disk_free_bytes: int
    folder_writable: bool
    folder: str
    filesystem: str
    folder_shared: bool
    shm_bytes: int | None
    open_files: int
    limits: dict[str, str]
    compiler: str | None
    python_headers: bool
    slurm_commands: tuple[str, ...] = field(default=())
    load: float | None = None  # programs that want a core, mean of the last minute


def collect(*, advance: Callable[[], None] = lambda: None) -> Facts:
    """Collect everything; takes a few seconds, mostly to import torch. Calls `advance` after each of N_PARTS parts."""
    folder, load = Path.cwd(), load_here()  # before the facts, which make some load
    of_software: dict[str, Any] = {"packages": packages(), "engines": engines_found()}
    advance()
    of_links = links()
    advance()
    of_torch = torch_facts(advance)
    return Facts(
        python=f"{platform.python_version()} ({sys.executable})",
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        stale_locks=stale_locks(shown_settings()),
        settings=shown_settings(),
        memory_free_bytes=memory_free_bytes(),
        disk_free_bytes=shutil.disk_usage(folder).free,
        folder_writable=os.access(folder, os.W_OK),
        shm_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        open_files=open_files_limit(),
        limits=limits(),
        links=of_links,
        folder=str(folder),
        filesystem=(filesystem := filesystem_of(folder)),
        folder_shared=filesystem in SHARED or filesystem.startswith("fuse."),
        compiler=compiler(),
        python_headers=Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
        slurm_commands=tuple(name for name in ("sbatch", "srun", "scontrol", "squeue") if shutil.which(name)),
        load=load,
        **of_software,
        **of_torch,
    )


def load_here() -> float | None:
    """The mean number of programs that wanted a core in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def load_warning(load: float | None, cores: int, *, most: float = 1.0) -> str:
    """Words for a load of more than `most` programs a core; "" if it is less."""
    if load is None or load <= most * cores:
        return ""
    return f"other programs keep the {cores} cores busy (load {load:.1f})"


def torch_facts(advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The fields of Facts that come from torch; empty values if torch cannot be imported."""
    empty: dict[str, Any] = {"gpus": (), "backends": (), "bf16_on_cpu": "unknown", "matmul_gflops": {}}
    try:
        import torch
        import torch.distributed as dist
    except (ImportError, OSError) as error:  # OSError: a shared library of torch is missing
        return {**empty, "torch": None, "torch_build": f"cannot be imported: {error}", "torch_threads": 0}
    advance()
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16, capability = torch.cuda.is_bf16_supported(), (properties.major, properties.minor)
            gpus.append(Device(properties.name, properties.total_memory, bf16, capability))
    built = {
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": dist.is_available() and dist.is_nccl_available(),
        "mpi": dist.is_available() and dist.is_mpi_available(),
    }
    gflops = matmul_gflops("cuda" if gpus else "cpu")
    advance()
    return {
        "torch": torch.__version__,
        "torch_build": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only",
        "gpus": tuple(gpus),
        "backends": tuple(name for name, present in built.items() if present),
        "bf16_on_cpu": bf16_on_cpu(),
        "matmul_gflops": gflops,
        "torch_threads": torch.get_num_threads(),
    }


def matmul_gflops(device: str) -> dict[str, float]:
    """GFLOP/s of a square matrix product in fp32 and bf16, median of five."""
    import torch

    size = 4096 if device == "cuda" else 768
    speeds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        spans = []
        for _ in range(6):
            started_at = time.perf_counter()
            matrix @ matrix
            if device == "cuda":
                torch.cuda.synchronize()
            spans.append(time.perf_counter() - started_at)
        speeds[name] = round(2 * size**3 / statistics.median(spans[1:]) / 1e9, 1)  # the first includes start-up costs
    return speeds


def filesystem_of(folder: Path) -> str:
    """The kind of the file system that holds a folder, from Linux; "unknown" elsewhere."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    mounts = {Path(point.replace("\\040", " ")): kind for _, point, kind, *_ in map(str.split, lines)}
    return next((mounts[path] for path in (folder, *folder.parents) if path in mounts), "unknown")


def limits() -> dict[str, str]:
    """The limits of this process (ulimit) that stop large runs."""
    import resource

    def shown(limit: int, unit: int) -> str:
        value = resource.getrlimit(limit)[0]
        return "unlimited" if value == resource.RLIM_INFINITY else f"{value // unit:,}{' KiB' if unit > 1 else ''}"

    return {
        "open files": shown(resource.RLIMIT_NOFILE, 1),
        "processes": shown(resource.RLIMIT_NPROC, 1),
        "locked memory": shown(resource.RLIMIT_MEMLOCK, 1024),
    }


def packages() -> tuple[Package, ...]:
    """Every dependency in our package metadata, with the version found."""
    try:
        lines = importlib.metadata.requires("triaxial") or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    found = []
    for line in lines:
        match = DEPENDENCY.match(line)
        if match is None or match["name"] == "triaxial":
            continue
        try:
            version: str | None = importlib.metadata.version(match["name"])
        except importlib.metadata.PackageNotFoundError:
            version = None
        minimum = MINIMUM.search(match["range"])
        found.append(Package(match["name"], minimum[1] if minimum else "0", match["extra"] or "", version))
    return tuple(found)


def _numbers(version: str) -> list[int]:
    """2.13.0+cpu -> [2, 13, 0]."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


def cpu_name() -> str:
    """The processor's name from Linux, else the architecture."""
    return first_in("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.machine()


def bf16_on_cpu() -> str:
    """The bf16 instructions of this processor; without any, bf16 is emulated and slower than fp32."""
    flags = (first_in("/proc/cpuinfo", r"^(?:flags|Features)\s*:\s*(.+)$") or "").split()
    native = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags]
    return f"native ({', '.join(native)})" if native else "emulated"


def memory_free_bytes() -> int | None:
    """Memory that this process may still allocate: the kernel's estimate, or less if a container has a limit."""
    available = first_in("/proc/meminfo", r"^MemAvailable:\s*(\d+) kB$")
    if available is None:
        return None
    free = [int(available) * 1024]
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, used = first_in(limit_file, r"^(\d+)$"), first_in(used_file, r"^(\d+)$")
        if limit is not None and used is not None:
            free.append(max(0, int(limit) - int(used)))
    return min(free)


def open_files_limit() -> int:
    """The number of files that a process may hold open."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use, or None."""
    candidates = [shown_settings().get("CXX"), "g++", "clang++", "c++"]
    return next((found for name in candidates if name and (found := shutil.which(name))), None)

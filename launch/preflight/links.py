"""What connects this machine's GPUs with each other and with other machines, and how fast they run now."""

import re
import subprocess
from pathlib import Path

SLOWED = "slowed by heat or power"


def links() -> dict[str, str]:
    """The GPU driver, NCCL, NVLink and InfiniBand, as far as this machine has them."""
    found = {}
    if driver := first_in("/proc/driver/nvidia/version", r"Kernel Module.*?\s(\d+\.[\d.]+)"):
        found["gpu driver"] = driver
    if nccl := nccl_version():
        found["nccl"] = nccl
    if nvlinks := sorted(set(re.findall(r"\bNV\d+\b", _output("nvidia-smi", "topo", "-m")))):
        found["nvlink"] = f"{', '.join(nvlinks)} between GPUs (links of a pair)"
    if clocks := gpu_clocks():
        found["gpu clocks"] = clocks
    ports = sorted(Path("/sys/class/infiniband").glob("*/ports/*")) if Path("/sys/class/infiniband").is_dir() else []
    states = [(port, first_in(str(port / "state"), r"(\w+)$"), first_in(str(port / "rate"), r"(.+)")) for port in ports]
    if states:
        found["infiniband"] = ", ".join(f"{port.parts[-3]} {state} {rate}" for port, state, rate in states)
    return found


def nccl_version() -> str:
    """The version of torch's NCCL; "" without one."""
    try:
        import torch

        version: tuple[int, ...] = torch.cuda.nccl.version() if torch.version.cuda else ()  # type: ignore[no-untyped-call]
        return ".".join(map(str, version))
    except (ImportError, OSError, AttributeError, RuntimeError):
        return ""


def _output(*command: str) -> str:
    """The standard output of a program; "" if there is none, it fails, or it takes over 10 s."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def gpu_clocks() -> str:
    """The clocks of the GPUs in MHz, and whether the hardware holds them back; "" without nvidia-smi.

    An idle GPU runs slowly too, so only the driver's own words count.
    """
    names = "clocks.sm,clocks.max.sm,clocks_throttle_reasons.hw_slowdown,clocks_throttle_reasons.hw_thermal_slowdown"
    lines = _output("nvidia-smi", f"--query-gpu=index,{names}", "--format=csv,noheader,nounits").splitlines()
    rows = [[field.strip() for field in line.split(",")] for line in lines]
    return ", ".join(
        f"GPU {index}: {now} of {most} MHz{f' ({SLOWED})' if 'Active' in reasons else ''}"
        for index, now, most, *reasons in (row for row in rows if len(row) == 5)
    )


def first_in(path: str, pattern: str) -> str | None:
    """The first group of the first match in a file; None without one."""
    try:
        match = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE)
    except OSError:
        return None
    return match[1].strip() if match else None

"""Measure the memory of this process and of its machine. Nothing here waits for a device."""

import os
import re
from contextlib import suppress
from pathlib import Path

_IN_USE = re.compile(r"^(MemTotal|MemAvailable):\s*(\d+) kB$", re.MULTILINE)


def memory_values() -> dict[str, int]:
    """Return the memory that a step logs, in bytes. Values that this system does not show are left out.

    `memory/resident_bytes`: of this process. `memory/machine_used_bytes`: of all programs of the machine, without
    caches that the kernel can give back. `memory/gpu_allocated_bytes`: tensors on the current CUDA device.
    `memory/gpu_reserved_bytes`: with the cache of torch's allocator.
    """
    import torch  # here: it takes seconds

    values: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        values["memory/resident_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, KeyError):
        found = {name: int(size) * 1024 for name, size in _IN_USE.findall(Path("/proc/meminfo").read_text())}
        values["memory/machine_used_bytes"] = found["MemTotal"] - found["MemAvailable"]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        values["memory/gpu_allocated_bytes"] = int(torch.cuda.memory_allocated())
        values["memory/gpu_reserved_bytes"] = int(torch.cuda.memory_reserved())
    return values


def peak_memory_bytes() -> int | None:
    """Return the peak of torch's allocations on the current CUDA device, or of resident memory if CUDA is not in use.

    None if neither is known.
    """
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None

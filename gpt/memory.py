"""The most memory that this process has had so far; estimates nothing (parallel/planner/memory.py does) and frees nothing."""

from contextlib import suppress
from pathlib import Path

import torch


def peak_memory_bytes() -> int | None:
    """What torch had allocated on the current CUDA device at its highest; without one in use, the process's own
    resident memory at its highest. None where neither is known. Waits for nothing."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None

"""Identify the machine that wrote a file."""

from pathlib import Path


def boot_id() -> str:
    """Return the kernel's id of this boot of the machine; "" if the system has none. Host names, unlike it, may repeat.

    Processes with equal ids share one monotonic clock and one table of file locks.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

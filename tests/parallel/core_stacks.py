"""For tests: the native stacks of threads that crashed, read by gdb from the cores that they left."""

import shutil
import subprocess
import sys
from pathlib import Path

GDB_TIMEOUT_S = 120  # gdb reads the symbols of torch; that takes a few seconds on an idle machine


def native_stacks(folder: Path) -> str:
    """The stack of the thread that crashed, for each core below `folder`. Empty if there is no core or no gdb."""
    if shutil.which("gdb") is None:
        return ""
    return "".join(f"{core}:\n{_stack(core)}\n" for core in sorted(folder.rglob("core*")) if core.is_file())


def _stack(core: Path) -> str:
    """The frames, or gdb's output if it has none. A core's first thread is the one that crashed."""
    try:
        found = subprocess.run(
            ["gdb", "-batch", "-nx", "-iex", "set debuginfod enabled off", "-ex", "bt 40", sys.executable, str(core)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GDB_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"gdb has failed: {error}"
    frames = [line[:200] for line in found.stdout.splitlines() if line.startswith("#")]
    return "\n".join(frames) or (found.stdout + found.stderr)[-2000:]

"""The monitor process starts without site-packages, so that it can import neither torch nor numpy."""

import subprocess
import sys

from parallel.health.watchdog import ROOT


def test_the_monitor_imports_nothing_that_is_installed():
    program = "import sys; sys.path.append(sys.argv[1]); import parallel.health.monitor; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", program, str(ROOT)]
    modules = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout.split()
    assert "parallel.health.monitor" in modules
    assert not {"torch", "numpy"} & set(modules)

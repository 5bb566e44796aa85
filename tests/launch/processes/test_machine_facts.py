"""The facts about this machine agree with the operating system and with our package metadata."""

import os
import shutil
import subprocess
import sys

import pytest

from launch.processes.machine_facts import N_PARTS, Package, collect, limits


def test_the_facts_agree_with_the_system():
    parts = list[int]()
    here = collect(advance=lambda: parts.append(len(parts) + 1))
    assert parts == list(range(1, N_PARTS + 1)), "what doctor's bar counts"
    assert here.cores == len(os.sched_getaffinity(0))
    assert here.python.startswith(".".join(map(str, sys.version_info[:3])))
    assert here.shm_bytes == shutil.disk_usage("/dev/shm").total
    assert 0 < here.memory_free_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert "gloo" in here.backends
    assert here.matmul_gflops["fp32"] > 0.1
    found = {package.name: package for package in here.packages}
    assert {"torch", "numpy", "sentencepiece"} <= {name for name, package in found.items() if not package.extra}
    assert found["pyarrow"].extra == "data"
    assert (found["torchtitan"].extra, found["torchtitan"].minimum) == ("benchmarks", "0.2.2"), "it has an upper bound"
    assert found["pytest"].version == pytest.__version__


@pytest.mark.parametrize(
    ("version", "too_old"), [(None, False), ("2.9.1", True), ("2.13.0+cpu", False), ("2.13", False), ("3.0", False)]
)
def test_versions_are_compared_as_numbers(version, too_old):
    assert Package("torch", "2.13", "", version).too_old == too_old


def test_limits_are_those_of_the_shell():
    shown = subprocess.run(["bash", "-c", "ulimit -n; ulimit -l"], capture_output=True, text=True, check=True)
    files, locked = shown.stdout.split()
    assert limits()["open files"].replace(",", "") == files
    assert limits()["locked memory"].replace(",", "").removesuffix(" KiB") == locked

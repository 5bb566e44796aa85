"""The facts about this machine agree with the operating system and with our package metadata."""

import os
import shutil
import subprocess
import sys

import pytest

from launch.processes.machine_facts import Package, collect, limits, links


def test_the_facts_agree_with_the_system():
    here = collect()
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


def test_links_are_those_that_the_driver_shows(tmp_path, monkeypatch):
    """A program in the place of nvidia-smi prints the topology of two GPUs with 18 NVLinks, as the driver has it."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\nprintf '\\tGPU0\\tGPU1\\tNIC0\\nGPU0\\t X \\tNV18\\tSYS\\nGPU1\\tNV18\\t X \\tSYS\\n'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert links()["nvlink"] == "NV18 between GPUs (links of a pair)"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert "nvlink" not in links()


def test_limits_are_those_of_the_shell():
    shown = subprocess.run(["bash", "-c", "ulimit -n; ulimit -l"], capture_output=True, text=True, check=True)
    files, locked = shown.stdout.split()
    assert limits()["open files"].replace(",", "") == files
    assert limits()["locked memory"].replace(",", "").removesuffix(" KiB") == locked

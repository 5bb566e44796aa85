"""The links and clocks of GPUs, as a program in the place of nvidia-smi prints them."""

import os

from launch.preflight.links import gpu_clocks, links


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


def test_a_gpu_that_the_hardware_holds_back_is_marked(tmp_path, monkeypatch):
    """The form is that of `nvidia-smi --query-gpu ... --format=csv,noheader,nounits`."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho '0, 1980, 1980, Not Active, Not Active'\necho '1, 345, 1980, Active, Not Active'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_clocks() == "GPU 0: 1980 of 1980 MHz, GPU 1: 345 of 1980 MHz (slowed by heat or power)"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert gpu_clocks() == ""

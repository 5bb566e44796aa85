"""The memory of this process and machine, beside what the kernel says."""

import mmap
import resource
from pathlib import Path

import pytest
import torch

from gpt.telemetry.memory import memory_values, peak_memory_bytes


def test_a_large_block_shows_in_resident_memory_and_stays_in_the_peak():
    before = memory_values()
    block = mmap.mmap(-1, 200 << 20)  # straight from the kernel: malloc may keep what is freed
    block.write(b"x" * len(block))
    during = memory_values()
    assert during["memory/resident_bytes"] - before["memory/resident_bytes"] > 150 << 20
    assert peak_memory_bytes() >= during["memory/resident_bytes"]
    block.close()
    assert memory_values()["memory/resident_bytes"] < during["memory/resident_bytes"] - (100 << 20)
    assert peak_memory_bytes() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_machine_uses_less_than_it_has_and_more_than_this_process():
    values = memory_values()
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < values["memory/machine_used_bytes"] < total
    assert not [name for name in values if "gpu" in name], "CUDA is not in use here"


@pytest.mark.gpu
def test_the_peak_is_that_of_the_gpu_once_it_is_in_use():
    held = torch.zeros(2**26, dtype=torch.uint8, device="cuda")
    assert peak_memory_bytes() == torch.cuda.max_memory_allocated() >= held.numel()
    assert memory_values()["memory/gpu_reserved_bytes"] >= memory_values()["memory/gpu_allocated_bytes"] >= held.numel()

"""A run's devices: whether they serve its recipe, and their peak speed.

The peak is the denominator of model FLOP utilisation (MFU).
"""

import os
import re
import time
from pathlib import Path

import torch

from gpt.errors import ConfigError
from gpt.model.attention import check_kernel_on_gpu
from launch.config.run_config import RunConfig, RunSection
from launch.processes.environment import make_libraries_deterministic, set_unless_set
from parallel.axes.precision import ARITHMETIC
from parallel.engines.capabilities import check_engine_device
from parallel.layout.config import Precision
from parallel.layout.layout import Layout, check_device

# Dense bf16 tensor-core peaks in TFLOP/s, from the makers' data sheets (without sparsity).
GPU_PEAKS_TFLOPS = {
    "GB300": 2500,
    "B300": 2250,
    "GB200": 2500,
    "B200": 2250,
    "B100": 1750,
    "H200": 989,
    "H200 NVL": 835,
    "H100": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "GH200": 989,
    "H800": 989,
    "H20": 148,
    "A100": 312,
    "A800": 312,
    "A30": 165,
    "A40": 150,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "V100": 125,
    "RTX 6000 Ada": 364,
    "RTX A6000": 155,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "MI355X": 2500,
    "MI325X": 1307,
    "MI300X": 1307,
    "MI250X": 191.5,  # of one of its two dies, which are two devices
}


_MEASURE_S = 0.5  # for the peak of a CPU


def check_hardware(config: RunConfig, layout: Layout, device: torch.device) -> None:
    """ConfigError if the device cannot run the recipe. Sends nothing."""
    check_engine_device(config.parallel, device.type)
    check_device(config.parallel, device.type)
    if device.type == "cuda":
        check_capability(config.parallel.precision, torch.cuda.get_device_capability(device))
        check_kernel_on_gpu(
            config.parallel.attention,
            device=device,
            dtype=torch.float32 if config.parallel.precision == "fp32" else torch.bfloat16,
            heads=(config.model.n_heads // layout.tensor, -(-config.model.kv_heads // layout.tensor)),
            seq_len=config.data.seq_len,
            e=config.model.d_head,
        )


def prepare_gpu_libraries(run: RunSection) -> list[str]:
    """Set what NCCL and cuBLAS read at their first use. Returns warnings of variables that had other values."""
    kept = set_unless_set(run.nccl)
    if run.deterministic:
        make_libraries_deterministic()
    return [
        f"run.nccl.{name} = '{run.nccl[name]}' is not used: the ranks' environment has {name}={found}"
        for name, found in kept.items()
    ]


def check_capability(precision: Precision, found: tuple[int, int]) -> None:
    """ConfigError if a GPU of compute capability `found` lacks the products of this precision."""
    wanted = ARITHMETIC[precision].capability
    if found < wanted:
        raise ConfigError(
            f'parallel.precision = "{precision}" is invalid on this GPU: it needs compute capability '
            f'{wanted[0]}.{wanted[1]} or above, and the GPU has {found[0]}.{found[1]}. Use parallel.precision = "bf16"'
        )


def peak_flops_per_s(device: torch.device, *, bf16: bool, world_size: int, local_world_size: int) -> float:
    """The peak of all devices of a run together, in FLOP/s; 0.0 if unknown (then set run.peak_flops_per_s).

    Unknown are GPUs missing from the table, and fp32 on a GPU, which depends on TF32 settings. CPU data sheets give no
    usable peak, so that of one core is measured, in about half a second, and multiplied by the cores.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [part for part in GPU_PEAKS_TFLOPS if re.search(rf"\b{part}\b", name)]
        return GPU_PEAKS_TFLOPS[max(known, key=len)] * 1e12 * world_size if known and bf16 else 0.0
    return measure_cpu_flops_per_s(torch.bfloat16 if bf16 else torch.float32) * world_size / local_world_size


def missing_peak(device: torch.device) -> str:
    """Why a run on a GPU has no MFU, and how to get one."""
    name = torch.cuda.get_device_name(device)
    return (
        f"MFU is not logged: the peak of '{name}' in the run's precision is not known. "
        f"Set run.peak_flops_per_s to that of one device"
    )


def measure_cpu_flops_per_s(dtype: torch.dtype) -> float:
    """Best measured speed of a matrix product on one core, times the cores of this process, in FLOP/s.

    Only the time that the thread had its core counts, and the best of many short products: other programs, which may
    slow each product that needs all cores, change little.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return n_cores() * max(_best_flops_per_s(n, dtype, for_s=_MEASURE_S / 2) for n in (256, 512))
    finally:
        torch.set_num_threads(threads)


def n_cores() -> int:
    """The physical cores that this process may use. Hardware threads of one core share its arithmetic units."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in cpus:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return len(siblings)


def _best_flops_per_s(n: int, dtype: torch.dtype, *, for_s: float) -> float:
    """Best speed of a product of two n x n matrices among those of `for_s` seconds, and at least eight."""
    a, b, product = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype), torch.empty(n, n, dtype=dtype)
    best_s, n_done, ends_at = float("inf"), 0, time.perf_counter() + for_s
    while n_done < 8 or time.perf_counter() < ends_at:
        started_at = time.thread_time()
        torch.mm(a, b, out=product)  # a new product would cost page faults
        best_s = min(best_s, time.thread_time() - started_at)
        n_done += 1
    return 2.0 * n**3 / best_s

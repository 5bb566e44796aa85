"""Peak matrix-product speed of a run's devices: the denominator of model FLOP utilisation (MFU)."""

import os
import re
import time

import torch

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


def peak_flops_per_s(device: torch.device, *, bf16: bool, world_size: int, local_world_size: int) -> float:
    """The peak of all devices of a run together, in FLOP/s; 0.0 if unknown (then set run.peak_flops_per_s).

    Unknown are GPUs missing from the table, and fp32 on a GPU, which depends on TF32 settings. CPU data sheets give no
    usable peak, so it is measured: the best of a few products of 1,024 x 1,024 matrices on all cores. That takes a few
    tenths of a second; call it on one rank of a node while the others wait.
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
    """Best measured speed of a square matrix product on all cores of this machine, in FLOP/s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        n = 1024
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        best_s = float("inf")
        for _ in range(8):
            started_at = time.perf_counter()
            a @ b
            best_s = min(best_s, time.perf_counter() - started_at)
        return 2.0 * n**3 / best_s
    finally:
        torch.set_num_threads(threads)

"""Peak matrix-product speed of a run's devices: the denominator of model FLOP utilisation (MFU)."""

import os
import re
import time

import torch

# Dense bf16 tensor-core peaks in TFLOP/s, from the makers' data sheets (without sparsity).
GPU_PEAKS_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100": 989,
    "GH200": 989,
    "A100": 312,
    "L40S": 362,
    "A10G": 70,
    "A10": 125,
    "H100 PCIe": 756,
    "V100": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
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

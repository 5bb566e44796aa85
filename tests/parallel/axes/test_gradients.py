"""The norm of gradients against arithmetic."""

import math

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gpt.model.config import ModelConfig
from parallel.axes.gradients import squared_norm
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.layout.mesh import build_mesh


def test_the_norm_of_many_gradients_is_exact():
    """fp32 sums on a CPU lose 1e-3 of a norm over tens of millions of equal elements: 4 million show it."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        layout = resolve_layout(
            ParallelConfig(), BatchConfig(1, 16), model=ModelConfig(64, 16, 1, 16, 1), seq_len=16, world_size=1
        )
        parameter = torch.nn.Parameter(torch.empty(4_000_000))
        parameter.grad = torch.full_like(parameter, 0.1)
        squared = squared_norm([parameter], build_mesh(layout, torch.device("cpu")), counted_elsewhere=set())
    finally:
        dist.destroy_process_group()
    assert math.isclose(float(squared), 4_000_000 * float(parameter.grad[0]) ** 2, rel_tol=1e-9)

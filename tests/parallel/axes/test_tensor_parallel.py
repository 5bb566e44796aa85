"""What tensor parallelism asks of torch, on one process."""

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed._symmetric_memory import is_symm_mem_enabled_for_group

from parallel.axes.tensor_parallel import allow_asynchronous


def test_tensor_ranks_are_entered_for_asynchronous_messages():
    """Without it the compiler's pass leaves every message as it is, and says nothing."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))
        name = mesh.get_group().group_name
        assert not is_symm_mem_enabled_for_group(name)
        allow_asynchronous(mesh)
        assert is_symm_mem_enabled_for_group(name)
    finally:
        dist.destroy_process_group()

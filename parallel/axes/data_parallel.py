"""The data axis: FSDP2 and its gradient accumulation."""

from functools import partial

import torch
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from parallel.axes.stage import Stage
from parallel.layout.config import ParallelConfig
from parallel.layout.mesh import Mesh


def _apply_data_parallel(stage: Stage, parallel: ParallelConfig, mesh: Mesh) -> None:
    """FSDP2 on every layout, on one rank too: it is also what keeps fp32 weights beside bf16 ones for compute."""
    compute = torch.bfloat16 if parallel.precision == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    place = OffloadPolicy()
    if parallel.offload:
        place = CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda")
    again = parallel.zero_stage == 3
    shard = partial(fully_shard, mesh=mesh.data, mp_policy=policy, offload_policy=place)
    for block in stage.model.blocks.values():
        shard(block, reshard_after_forward=again)
    shard(stage, reshard_after_forward=False)
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are sums: gradients add up, one division comes at the end
            module.set_force_sum_reduction_for_comms(True)

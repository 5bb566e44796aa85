"""The data axis: FSDP2 around each block and stage, and gradient accumulation over micro-batches."""

from collections.abc import Sequence
from functools import partial

import torch
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from gpt.losses.batch import Batch
from parallel.axes.precision import ARITHMETIC
from parallel.axes.reduce_scatter import ChunkReduceScatter, sums_whole_tensors
from parallel.axes.stage import ModelStage
from parallel.layout.config import ParallelConfig
from parallel.layout.mesh import Mesh


def apply_data_parallel(stage: ModelStage, parallel: ParallelConfig, mesh: Mesh) -> None:
    """Wrap a stage in FSDP2, on one rank too: it also keeps fp32 weights behind the bf16 ones that compute."""
    compute = ARITHMETIC[parallel.precision].compute
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    # A stage's inputs are tokens, hidden states in the compute dtype, and tensors for the loss, which keep theirs.
    outer = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = OffloadPolicy()
    if parallel.offload:
        offload = CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda")
    shard = partial(fully_shard, mesh=mesh.data, offload_policy=offload)
    for block in stage.model.blocks.values():
        shard(block, mp_policy=policy, reshard_after_forward=parallel.zero_stage == 3)
    # Without a pipeline, backward follows at once, so freeing the two ends would only gather them a second time.
    shard(stage, mp_policy=outer, reshard_after_forward=parallel.zero_stage == 3 and parallel.pipeline > 1)
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            if mesh.data.size() > 1:  # on one rank, FSDP would divide a copy of each gradient by 1
                module.set_gradient_divide_factor(1.0)  # losses are sums: gradients are divided once, at the end
            module.set_force_sum_reduction_for_comms(True)
            _compute_on_local_tensors(module)
            if sums_whole_tensors(mesh.device.type):
                module.set_custom_reduce_scatter(ChunkReduceScatter())


def _compute_on_local_tensors(module: FSDPModule) -> None:
    """Let FSDP gather the parameters of tensor ranks, which are DTensors, as plain local tensors.

    Shards and their gradients stay DTensors over the data and tensor axes. In torch 2.13 these two fields decide it.
    """
    for group in module._get_fsdp_state()._fsdp_param_groups:
        for parameter in group.fsdp_params:
            parameter.is_dtensor, parameter._unsharded_dtensor_spec = False, None


def accumulate(stage: ModelStage, micro_batches: Sequence[Batch], *, zero_stage: int) -> None:
    """Forward and backward of one micro-batch after the other, on a model without pipeline stages.

    ZeRO 2 and 3 reduce gradients into shards after each micro-batch; lower stages keep whole gradients and reduce after
    the last. Replicas of shards (hybrid sharding) are summed after the last in any case.
    """
    assert isinstance(stage, FSDPModule)
    for i, batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        if i == 0 or last:  # those between are as the first; each setting visits all modules
            prepare_backward(stage, last=last, zero_stage=zero_stage)
        stage(batch.inputs, batch).backward()


def prepare_backward(stage: FSDPModule, *, last: bool, zero_stage: int) -> None:
    """Set what FSDP does in the next backward pass, which may be the last of a step."""
    stage.set_is_last_backward(last)
    stage.set_requires_gradient_sync(last or zero_stage >= 2)
    stage.set_requires_all_reduce(last)
    stage.set_reshard_after_backward(last or zero_stage == 3)

"""The data axis: FSDP2 around each block and stage, and gradient accumulation over micro-batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
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
    casts = compute != torch.float32  # else FSDP visits all inputs of each block to change nothing
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=casts)
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
    for module in _fsdp_modules(stage):
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
    states = [module._get_fsdp_state() for module in _fsdp_modules(stage)]
    idle = zero_stage < 2 and all(state._mp_policy.param_dtype == torch.float32 for state in states)  # see ADR 7
    for i, batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        if i == 0 or last:  # those between are as the first; each setting visits all modules
            prepare_backward(stage, last=last, zero_stage=zero_stage)
        with _without_hooks(states) if idle and i > 0 and not last else nullcontext():
            stage(batch.inputs, batch).backward()


@contextmanager
def _without_hooks(states: list[Any]) -> Iterator[None]:
    """Let FSDP pass over a forward and backward in which it has nothing to do.

    Weights are gathered, no gradient is reduced, and autograd adds gradients up in fp32 itself. In torch 2.13 the hooks
    of a forward pass return at once if it belongs to a backward pass, as one of recomputation does. They then register
    none for the backward pass.
    """
    for state in states:
        state._training_state = type(state._training_state).PRE_BACKWARD
    try:
        yield
    finally:
        for state in states:
            state._training_state = type(state._training_state).IDLE


def _fsdp_modules(stage: nn.Module) -> list[FSDPModule]:
    return [module for module in stage.modules() if isinstance(module, FSDPModule)]


def prepare_backward(stage: FSDPModule, *, last: bool, zero_stage: int) -> None:
    """Set what FSDP does in the next backward pass, which may be the last of a step."""
    stage.set_is_last_backward(last)
    stage.set_requires_gradient_sync(last or zero_stage >= 2)
    stage.set_requires_all_reduce(last)
    stage.set_reshard_after_backward(last or zero_stage == 3)

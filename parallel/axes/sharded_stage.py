"""ZeRO 2 and 3 under torch's pipeline schedules.

torch's schedules handle an FSDP module themselves: they keep its weights and gradients whole until the last
micro-batch. `HiddenFSDP` hides it from them, so that FSDP's hooks gather and free weights, and gradients are reduced in
each backward pass.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage

from parallel.axes.data_parallel import prepare_backward
from parallel.axes.stage import ModelStage


class HiddenFSDP(nn.Module):
    """A stage that torch's schedules do not recognise as an FSDP module."""

    def __init__(self, stage: ModelStage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.stage(*args, **kwargs)
        return output

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The gathered parameters, which autograd's graph has, also while their memory is free; else the shards.

        A split backward pass looks for their nodes in the graph.
        """
        for group in _parameter_groups(self.stage):
            for parameter in group.fsdp_params:
                yield getattr(parameter, "_unsharded_param", parameter.sharded_param)


class ShardedStage(PipelineStage):
    """A pipeline stage that reduces gradients in every backward pass (ZeRO 2), and frees weights after use (ZeRO 3).

    A backward pass may be split, as zero-bubble schedules do. The pass of the inputs then gathers and frees block by
    block. The pass of the weights runs outside FSDP's hooks: under ZeRO 3 it first gathers the whole stage, because
    the backward of a LayerNorm's weight reads it.
    """

    zero_stage: int
    micro_batches: int  # of a step
    finished = 0  # backward passes of weights in this step

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        stage: Any = self.submod.stage
        weights = backward_type == "weight"
        # Counted here, since torch takes no backward pass of a stage that never splits one for the last.
        self.finished = (self.finished + (backward_type != "input")) % self.micro_batches
        last = backward_type != "input" and self.finished == 0
        prepare_backward(stage, last=last, zero_stage=self.zero_stage)
        if backward_type == "input":
            stage.set_requires_gradient_sync(False)  # there are none yet
            stage.set_reshard_after_backward(self.zero_stage == 3)
        if weights and self.zero_stage == 3:
            for module in _fsdp_modules(stage):
                module.unshard()
        result = super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        if weights:
            for group in _parameter_groups(stage):
                group.post_backward()
            stage._get_fsdp_state()._root_post_backward_final_callback()
        return result


def _fsdp_modules(stage: nn.Module) -> list[FSDPModule]:
    return [module for module in stage.modules() if isinstance(module, FSDPModule)]


def _parameter_groups(stage: nn.Module) -> list[Any]:
    """Blocks from the last to the first and then the stage, the order of a backward pass."""
    return [g for module in reversed(_fsdp_modules(stage)) for g in module._get_fsdp_state()._fsdp_param_groups]

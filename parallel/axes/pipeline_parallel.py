"""Run this rank's stages under torch's pipeline schedules."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from parallel.axes.precision import ARITHMETIC
from parallel.axes.sharded_stage import HiddenFSDP, ShardedStage
from parallel.axes.stage import ModelStage
from parallel.layout.config import ParallelConfig, splits_backward
from parallel.layout.mesh import Mesh

SINGLE: dict[str, type[PipelineScheduleSingle]] = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}
MULTI: dict[str, type[PipelineScheduleMulti]] = {
    "interleaved_1f1b": ScheduleInterleaved1F1B,
    "interleaved_zero_bubble": ScheduleInterleavedZeroBubble,
    "zbv_zero_bubble": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}


class Pipeline:
    """This rank's stages among those of its pipeline. A schedule is built when the shape of the batch changes."""

    def __init__(self, stages: list[ModelStage], model: ModelConfig, mesh: Mesh, parallel: ParallelConfig) -> None:
        self.stages = dict(zip(mesh.stages, stages, strict=True))
        self.model = model
        self.mesh = mesh
        self.schedule = parallel.schedule
        self.zero_stage = parallel.zero_stage
        self.shares = mesh.layout.tensor if parallel.sequence_parallel else 1  # of a sequence between stages
        self.dtype = ARITHMETIC[parallel.precision].compute
        self.whole_backward = parallel.schedule == "dualpipev" and not splits_backward(parallel)
        self.last = mesh.layout.stages - 1
        self._schedules: dict[tuple[tuple[int, ...], int], PipelineScheduleSingle | PipelineScheduleMulti] = {}

    def forward_backward(self, batch: Batch, *, micro_batches: int) -> None:
        """Add the gradients of a batch, the same on every stage, to those of the stages' parameters."""
        fields: dict[str, Any] = batch.tensors()
        inputs = fields.pop("inputs")
        first = (inputs,) if 0 in self.stages else ()
        target = batch.targets if self.last in self.stages else None
        self._schedule(batch, micro_batches).step(*first, target=target, return_outputs=False, **fields)

    def forward(self, batch: Batch, *, values: bool = False) -> Tensor:
        """Forward only; losses gather in the last stage. Returns the output of this rank's last stage.

        From stage to stage, without torch's schedules: eval() of the V-shaped ones fails in 2.13, since it passes
        gradients on. A rank is free for the next batch once its output is received, so several batches fill the
        pipeline if each rank has one stage. `values`: see ModelStage.forward.
        """
        message = torch.empty(self._hidden_shape(*batch.inputs.shape[:2]), dtype=self.dtype, device="meta")
        return pass_through(
            self.stages, self.mesh, batch.inputs, message, lambda index, x: self.stages[index](x, batch, values=values)
        )

    def _schedule(self, batch: Batch, micro_batches: int) -> PipelineScheduleSingle | PipelineScheduleMulti:
        key = (tuple(batch.inputs.shape), micro_batches)
        if key not in self._schedules:
            inputs = next(batch.split(len(batch) // micro_batches)).inputs
            stages = [self._pipeline_stage(index, inputs, micro_batches) for index in self.stages]
            options: dict[str, Any] = {"loss_fn": _loss_of_stage, "scale_grads": False}
            self._schedules.clear()  # torch's hold a receive buffer for every micro-batch
            if self.schedule in SINGLE:
                self._schedules[key] = SINGLE[self.schedule](stages[0], micro_batches, **options)
            else:
                self._schedules[key] = MULTI[self.schedule](stages, micro_batches, **options)  # type: ignore[arg-type]
        return self._schedules[key]

    def _pipeline_stage(self, index: int, inputs: Tensor, micro_batches: int) -> PipelineStage:
        """Shapes are stated here, so that torch need not run the model to find them."""
        shape = self._hidden_shape(inputs.size(0), inputs.size(1))
        hidden = torch.empty(shape, dtype=self.dtype, device="meta", requires_grad=True)
        loss = torch.empty((), dtype=torch.float32, device="meta", requires_grad=True)
        options: dict[str, Any] = {
            "input_args": torch.empty_like(inputs, device="meta") if index == 0 else hidden,
            "output_args": loss if index == self.last else hidden,
            "group": self.mesh.pipeline_group,
            "dw_builder": _nothing_left if self.whole_backward else None,
        }
        where = index, self.mesh.layout.stages, self.mesh.device
        if self.zero_stage < 2:
            return _Stage(self.stages[index], *where, **options)
        sharded = ShardedStage(HiddenFSDP(self.stages[index]), *where, **options)
        sharded.zero_stage, sharded.micro_batches = self.zero_stage, micro_batches
        return sharded

    def _hidden_shape(self, sequences: int, length: int) -> tuple[int, int, int]:
        return sequences, length // self.shares, self.model.d_model


def pass_through(
    stages: Iterable[int], mesh: Mesh, inputs: Tensor, message: Tensor, run: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Forward only, from stage to stage by messages. `run` runs one of this rank's stages; returns the last's output.

    `inputs` go into stage 0; `message` has the shape and dtype of what stages pass on. Every rank must call it."""
    held, output = tuple(stages), inputs
    for index in held:
        if index > 0 and index - 1 not in held:  # else it is stage 0, or the stage before it is on this rank
            output = torch.empty_like(message, device=mesh.device)
            dist.recv(output, src=mesh.global_rank_of(index - 1), group=mesh.pipeline_group)
        output = run(index, output)
        if index < mesh.layout.stages - 1 and index + 1 not in held:
            dist.send(output.contiguous(), dst=mesh.global_rank_of(index + 1), group=mesh.pipeline_group)
    return output


class _Stage(PipelineStage):
    """FSDP adds up gradients in fp32 at the end of a backward pass. Zero-bubble schedules run the weight backward
    separately; FSDP misses it and would accumulate in bf16, so post_backward is called here."""

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
        for module in self.submod.modules():
            if isinstance(module, FSDPModule):
                for group in module._get_fsdp_state()._fsdp_param_groups:
                    group.post_backward()  # as PipelineStage.perform_reduce_grad does after the last


def _loss_of_stage(output: Tensor, target: Tensor) -> Tensor:
    """The last stage's output is the loss already: it needs the head's weights, which are gathered only inside it."""
    return output


def _nothing_left() -> Callable[[], None]:
    """Tell torch that a backward pass leaves no weight gradients for later, so that it runs whole passes."""
    return lambda: None

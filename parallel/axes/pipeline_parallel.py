"""Runs the stages of a rank under torch's pipeline schedules; never decides what a stage holds."""

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

from gpt.model.config import ModelConfig
from parallel.axes.stage import Stage
from parallel.layout.config import ParallelConfig
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

    def __init__(self, stages: list[Stage], model: ModelConfig, mesh: Mesh, parallel: ParallelConfig) -> None:
        self.stages = dict(zip(mesh.stages, stages, strict=True))
        self.model = model
        self.mesh = mesh
        self.schedule = parallel.schedule
        self.dtype = torch.bfloat16 if parallel.precision == "bf16" else torch.float32
        # DualPipeV splits only the backward passes at its ends; with these, which cannot be split, it splits none
        self.whole_backward = parallel.schedule == "dualpipev" and (parallel.compile or parallel.recompute != "none")
        self.last = mesh.layout.stages - 1
        self._schedules: dict[tuple[int, int, int], PipelineScheduleSingle | PipelineScheduleMulti] = {}

    def forward_backward(self, inputs: Tensor, targets: Tensor, *, micro_batches: int) -> None:
        """inputs and targets (n, t), the same on every stage; gradients accumulate in the stages' parameters."""
        first = (inputs,) if 0 in self.stages else ()
        last: dict[str, Any] = {"targets": targets} if self.last in self.stages else {}
        schedule = self._schedule(inputs, micro_batches)
        schedule.step(*first, target=targets if last else None, return_outputs=False, **last)

    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Forward only. With targets, losses gather in the last stage; without, the logits are sent to every stage.

        From stage to stage, without torch's schedules: eval() of the V-shaped ones fails in 2.13, as it hands gradients
        on. A rank is free for the next batch when its output is received, so that several batches fill the pipeline
        where each rank has one stage.
        """
        message = torch.empty(self._hidden_shape(*inputs.shape), dtype=self.dtype, device="meta")
        output = pass_through(
            self.stages,
            self.mesh,
            inputs,
            message,
            lambda index, x: self.stages[index](x, targets if index == self.last else None),
        )
        return torch.empty(0) if targets is not None else self._broadcast_logits(output, inputs)

    def _broadcast_logits(self, output: Tensor, inputs: Tensor) -> Tensor:
        if self.last not in self.stages:
            output = torch.empty(*inputs.shape, self.model.vocab_size, dtype=self.dtype, device=self.mesh.device)
        output = output.contiguous()
        dist.broadcast(output, src=self.mesh.global_rank_of(self.last), group=self.mesh.pipeline_group)
        return output

    def _schedule(self, inputs: Tensor, micro_batches: int) -> PipelineScheduleSingle | PipelineScheduleMulti:
        key = (inputs.size(0), inputs.size(1), micro_batches)
        if key not in self._schedules:
            shape = (inputs.size(0) // micro_batches, inputs.size(1))
            stages = [self._pipeline_stage(index, *shape) for index in self.stages]
            options: dict[str, Any] = {"loss_fn": _loss_of_stage, "scale_grads": False}
            self._schedules.clear()  # torch's hold a receive buffer for every micro-batch
            if self.schedule in SINGLE:
                self._schedules[key] = SINGLE[self.schedule](stages[0], micro_batches, **options)
            else:
                self._schedules[key] = MULTI[self.schedule](stages, micro_batches, **options)  # type: ignore[arg-type]
        return self._schedules[key]

    def _pipeline_stage(self, index: int, sequences: int, length: int) -> PipelineStage:
        """Shapes are stated here, so that torch need not run the model to find them."""
        shape = self._hidden_shape(sequences, length)
        hidden = torch.empty(shape, dtype=self.dtype, device="meta", requires_grad=True)
        tokens = torch.empty((sequences, length), dtype=torch.int64, device="meta")
        loss = torch.empty((), dtype=torch.float32, device="meta", requires_grad=True)
        return _Stage(
            self.stages[index],
            index,
            self.mesh.layout.stages,
            self.mesh.device,
            input_args=tokens if index == 0 else hidden,
            output_args=loss if index == self.last else hidden,
            group=self.mesh.pipeline_group,
            dw_builder=_nothing_left if self.whole_backward else None,
        )

    def _hidden_shape(self, sequences: int, length: int) -> tuple[int, int, int]:
        return sequences, length // self.mesh.layout.tensor, self.model.d_model


def pass_through(
    stages: Iterable[int], mesh: Mesh, inputs: Tensor, message: Tensor, run: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Forward only, from stage to stage by messages: `run` each of this rank's stages in order; what the last of them
    gave. `inputs` go into stage 0; `message` has the shape and type of what stages pass on. Every rank calls it."""
    held, output = tuple(stages), inputs
    for index in held:
        if index > 0 and index - 1 not in held:  # else it is stage 0, or the foot of a V
            output = torch.empty_like(message, device=mesh.device)
            dist.recv(output, src=mesh.global_rank_of(index - 1), group=mesh.pipeline_group)
        output = run(index, output)
        if index < mesh.layout.stages - 1 and index + 1 not in held:
            dist.send(output.contiguous(), dst=mesh.global_rank_of(index + 1), group=mesh.pipeline_group)
    return output


class _Stage(PipelineStage):
    """FSDP adds gradients up in fp32 when it sees the end of a backward pass. It does not see a separate one of
    weights, whose bf16 gradients torch would add to those of the one before."""

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
        for module in self.submod.modules():
            if isinstance(module, FSDPModule):
                for group in module._get_fsdp_state()._fsdp_param_groups:
                    group.post_backward()  # as PipelineStage.perform_reduce_grad does after the last


def _loss_of_stage(output: Tensor, target: Tensor) -> Tensor:
    """The last stage's output is its loss already: it needs the head's weights, gathered only while it runs."""
    return output


def _nothing_left() -> Callable[[], None]:
    """Tells torch that a backward pass leaves no gradients of weights for later: it then runs whole ones."""
    return lambda: None

"""Runs a stage under torch's pipeline schedules; never decides what a stage holds."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from gpt.config import ModelConfig
from parallel.layout import ParallelConfig
from parallel.mesh import Mesh
from parallel.stage import Stage

SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


class Pipeline:
    """This rank's stage among the stages of its pipeline. Schedules are built once for each shape of batch."""

    def __init__(self, stage: Stage, model: ModelConfig, mesh: Mesh, parallel: ParallelConfig) -> None:
        self.stage = stage
        self.model = model
        self.mesh = mesh
        self.schedule = SCHEDULES[parallel.schedule]
        self.dtype = torch.bfloat16 if parallel.precision == "bf16" else torch.float32
        self._schedules: dict[tuple[str, int, int, int], PipelineScheduleSingle] = {}

    def forward_backward(self, inputs: Tensor, targets: Tensor, *, micro_batches: int) -> None:
        """inputs and targets (n, t), the same on every stage; gradients accumulate in the stage's parameters."""
        schedule = self._schedule("train", inputs, micro_batches)
        first = (inputs,) if self.mesh.is_first_stage else ()
        last: dict[str, Any] = {"targets": targets} if self.mesh.is_last_stage else {}
        schedule.step(*first, target=targets if last else None, return_outputs=False, **last)

    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Forward only. With targets, losses gather in the stage; without, the logits are sent to every stage."""
        schedule = self._schedule("loss" if targets is not None else "logits", inputs, 1)
        first = (inputs,) if self.mesh.is_first_stage else ()
        last: dict[str, Any] = {"targets": targets} if self.mesh.is_last_stage and targets is not None else {}
        output: Tensor = schedule.step(*first, return_outputs=targets is None, **last)
        if targets is not None:
            return torch.empty(0)
        if not self.mesh.is_last_stage:
            output = torch.empty(*inputs.shape, self.model.vocab_size, dtype=self.dtype, device=self.mesh.device)
        output = output.contiguous()
        group = self.mesh.pipeline_group
        dist.broadcast(output, src=dist.get_global_rank(group, self.mesh.layout.pipeline - 1), group=group)
        return output

    def _schedule(self, kind: str, inputs: Tensor, micro_batches: int) -> PipelineScheduleSingle:
        key = (kind, inputs.size(0), inputs.size(1), micro_batches)
        if kind == "logits":  # lengths vary without end
            return ScheduleGPipe(self._pipeline_stage(kind, inputs.size(0), inputs.size(1)), 1, scale_grads=False)
        if key not in self._schedules:
            stage = self._pipeline_stage(kind, inputs.size(0) // micro_batches, inputs.size(1))
            if kind == "train":
                self._schedules[key] = self.schedule(stage, micro_batches, loss_fn=_loss_of_stage, scale_grads=False)
            else:
                self._schedules[key] = ScheduleGPipe(stage, micro_batches, scale_grads=False)
        return self._schedules[key]

    def _pipeline_stage(self, kind: str, sequences: int, length: int) -> PipelineStage:
        """Shapes are stated here, so that torch need not run the model to find them."""
        mesh, train = self.mesh, kind == "train"
        shape = (sequences, length // mesh.layout.tensor, self.model.d_model)
        hidden = torch.empty(shape, dtype=self.dtype, device="meta", requires_grad=train)
        tokens = torch.empty((sequences, length), dtype=torch.int64, device="meta")
        loss = torch.empty((), dtype=torch.float32, device="meta", requires_grad=train)
        logits = torch.empty((sequences, length, self.model.vocab_size), dtype=self.dtype, device="meta")
        output = hidden if not mesh.is_last_stage else logits if kind == "logits" else loss
        return PipelineStage(
            self.stage,
            mesh.stage,
            mesh.layout.pipeline,
            mesh.device,
            input_args=tokens if mesh.is_first_stage else hidden,
            output_args=output,
            group=mesh.pipeline_group,
        )


def _loss_of_stage(output: Tensor, target: Tensor) -> Tensor:
    """The last stage's output is its loss already: it needs the head's weights, gathered only while it runs."""
    return output

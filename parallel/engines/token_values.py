"""The loss's values of each token of a batch, by the forward code of training."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gpt.losses.base import Loss, SeveralValues
from gpt.losses.batch import Batch
from gpt.losses.packed_rows import micro_batches
from parallel.axes.pipeline_parallel import Pipeline
from parallel.axes.stage import ModelStage
from parallel.layout.mesh import Mesh


def values_of_tokens(
    batch: Batch,
    stages: Sequence[ModelStage],
    pipeline: Pipeline | None,
    mesh: Mesh,
    *,
    micro_batch_size: int,
    multiple: int | None = None,
    before_each: Callable[[], None] = lambda: None,
) -> Tensor:
    """(n, t) or (n, t, c) on every rank of a data rank, which must all call it; see Engine.token_values.

    The batch is on the device already. In a pipeline, the last stage sends its values to the others. `multiple`: see
    `micro_batches`; None in a pipeline.
    """
    last = mesh.layout.stages - 1
    parts: list[Tensor] = []
    for micro_batch in micro_batches(batch, rows=micro_batch_size, multiple=multiple):
        before_each()
        part = micro_batch.batch
        output = stages[0](part.inputs, part, values=True) if pipeline is None else pipeline.forward(part, values=True)
        if last in mesh.stages:
            parts.append(micro_batch.unpack(output))
    if pipeline is None:
        return torch.cat(parts)
    return from_last_stage(parts, batch, mesh, loss=stages[0].loss)


def from_last_stage(parts: Sequence[Tensor], batch: Batch, mesh: Mesh, *, loss: Loss) -> Tensor:
    """The values of the micro-batches that the last stage's ranks hold, fp32 on all ranks of the pipeline."""
    shape = (*batch.inputs.shape[:2], *((loss.n_values,) if isinstance(loss, SeveralValues) else ()))
    values = torch.cat(list(parts)).float() if parts else torch.empty(shape, device=mesh.device)
    dist.broadcast(values, src=mesh.global_rank_of(mesh.layout.stages - 1), group=mesh.pipeline_group)
    return values

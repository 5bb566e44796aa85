"""Wrap a model for its layout: tensor, recompute, compile, data axis, in this order."""

import torch

from gpt.losses.base import Loss
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from parallel.axes.data_parallel import _apply_data_parallel
from parallel.axes.recomputation import wrap_block
from parallel.axes.stage import Stage
from parallel.axes.tensor_parallel import allow_asynchronous, apply_tensor_parallel
from parallel.layout.config import ParallelConfig
from parallel.layout.mesh import Mesh


def build_stage(config: ModelConfig, parallel: ParallelConfig, mesh: Mesh, loss: Loss, *, index: int) -> Stage:
    """Stage `index` of the pipeline, its parameters allocated on the mesh's device (on the host if offloaded) and not
    yet filled.

    The order matters: tensor parallelism replaces parameters; blocks are compiled and wrapped for recomputation; FSDP's
    hooks come last.
    """
    model = build_layers(config, mesh, index=index)
    if parallel.async_tensor:
        allow_asynchronous(mesh.tensor)
    for name, block in model.blocks.items():
        model.blocks[name] = wrap_block(block, config, parallel)
    stage = Stage(model, loss)
    _apply_data_parallel(stage, parallel, mesh)
    stage.to_empty(device=torch.device("cpu") if parallel.offload else mesh.device)
    return stage


def build_layers(config: ModelConfig, mesh: Mesh, *, index: int) -> GPT:
    """The part of the model that stage `index` holds, split over the tensor ranks, on the meta device (no memory)."""
    layout = mesh.layout
    with torch.device("meta"):
        model = GPT(config, layout.layers_of(index), first=index == 0, last=index == layout.stages - 1)
    if layout.tensor > 1:
        apply_tensor_parallel(model, config, mesh.tensor)
    return model

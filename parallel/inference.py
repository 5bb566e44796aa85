"""A checkpoint's model on a layout, to be used and not trained: weights alone, whole on every data rank."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt.losses.next_token import loss_for
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from parallel.axes.stage import Stage, canonical_parameters
from parallel.axes.tensor_parallel import apply_tensor_parallel
from parallel.checkpoint import find as checkpoint
from parallel.inference.model import LayoutModel
from parallel.layout.mesh import Mesh


def load_layout_model(
    path: Path, config: ModelConfig, mesh: Mesh, *, dtype: torch.dtype, verified: bool = False
) -> LayoutModel:
    """The weights of a checkpoint of any layout, rounded to `dtype`, as a model over `mesh`, without gradients.

    Collective over all ranks. Memory of a rank: its share of the weights, and one tensor more. Errors as for
    `checkpoint.load`.
    """
    stages = [_build_stage(config, mesh, index=index, dtype=dtype) for index in mesh.stages]
    weights = {f"model.{name}": parameter.data for name, parameter in _parameters(stages)}
    checkpoint.load(path, tensors=weights, verified=verified, rounded=True)
    return LayoutModel(stages, mesh, d_model=config.d_model, dtype=dtype)


def _build_stage(config: ModelConfig, mesh: Mesh, *, index: int, dtype: torch.dtype) -> Stage:
    """One pipeline stage, its parameters allocated and not filled."""
    layout = mesh.layout
    with torch.device("meta"):
        model = GPT(config, layout.layers_of(index), first=index == 0, last=index == layout.stages - 1)
    if layout.tensor > 1:
        apply_tensor_parallel(model, config, mesh.tensor)
    model.to(dtype).to_empty(device=mesh.device)
    model.tie()  # allocating made two of a shared weight
    return Stage(model.eval().requires_grad_(False), loss_for(compile=False))


def _parameters(stages: list[Stage]) -> Iterator[tuple[str, nn.Parameter | Tensor]]:
    for stage in stages:
        yield from canonical_parameters(stage)

"""Wrap a model for its layout: tensor axis, recomputation and compilation, data axis, in this order."""

from dataclasses import replace

import torch

from gpt.adapters.config import AdapterConfig, adapter_shapes, check_adapter, check_also_train
from gpt.errors import ConfigError
from gpt.losses.base import Loss
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT, Embedding
from gpt.model.heads import VocabularyHead
from gpt.training.objective import NextToken, Objective
from gpt.training.optimizer import OptimizerConfig, check_patterns
from parallel.adapters.attach import attach_adapters, choose_trained, hold_base_in_bf16
from parallel.axes.column_products import overlap_messages
from parallel.axes.data_parallel import apply_data_parallel
from parallel.axes.precision import ARITHMETIC
from parallel.axes.recomputation import wrap_block
from parallel.axes.sequence_shards import tensor_ranks
from parallel.axes.stage import ModelStage
from parallel.axes.tensor_parallel import allow_asynchronous, apply_tensor_parallel
from parallel.layout.config import ParallelConfig, splits_backward
from parallel.layout.mesh import Mesh


def build_stage(
    config: ModelConfig,
    parallel: ParallelConfig,
    mesh: Mesh,
    *,
    index: int,
    objective: Objective,
    loss: Loss,
    optimizer: OptimizerConfig | None,
    residual_dropout: float = 0.0,
    adapter: AdapterConfig | None = None,
) -> ModelStage:
    """Stage `index` of the pipeline. Its parameters are allocated on the mesh's device (on the host if offloaded) and
    not yet filled; what `optimizer` freezes, or everything without one, needs no gradient. With `adapter`, low-rank
    adapters train and the base model is frozen.

    The order matters: tensor parallelism replaces parameters, and adapters follow it; blocks are compiled and wrapped
    for recomputation; FSDP's hooks come last.
    """
    stage = build_unsharded_stage(
        config,
        parallel,
        mesh,
        index=index,
        objective=objective,
        loss=loss,
        optimizer=optimizer,
        residual_dropout=residual_dropout,
        adapter=adapter,
    )
    apply_data_parallel(stage, parallel, mesh)
    stage.to_empty(device=torch.device("cpu") if parallel.offload else mesh.device)
    return stage


def build_unsharded_stage(
    config: ModelConfig,
    parallel: ParallelConfig,
    mesh: Mesh,
    *,
    index: int,
    objective: Objective,
    loss: Loss,
    optimizer: OptimizerConfig | None,
    residual_dropout: float = 0.0,
    adapter: AdapterConfig | None = None,
) -> ModelStage:
    """Stage `index` without a data axis, on the meta device: as for `build_stage`, for an engine with its own."""
    layout = mesh.layout
    model = model_on_meta(config, objective, layout.layers_of(index), first=index == 0, last=index == layout.stages - 1)
    tensor = mesh.tensor if layout.tensor > 1 else None
    ranks = None
    if tensor is not None:
        splits = {"splits_sequence": parallel.sequence_parallel, "splits_backward": splits_backward(parallel)}
        ranks = tensor_ranks(tensor, **splits)
        apply_tensor_parallel(model, config, tensor, ranks)
    if adapter is not None:
        attach_adapters(model, adapter, tensor)
        if parallel.precision == "bf16":
            hold_base_in_bf16(model, adapter)
    ARITHMETIC[parallel.precision].set_products(model, tensor)
    choose_trained(model, adapter, optimizer)
    if ranks is not None and not ranks.splits_backward:
        overlap_messages(model, ranks)
    if parallel.async_tensor:
        allow_asynchronous(mesh.tensor)
    for name, block in model.blocks.items():
        model.blocks[name] = wrap_block(block, parallel)
    return ModelStage(
        model,
        loss,
        attention_mask=objective.attention_mask,
        ranks=ranks,
        residual_dropout=residual_dropout,
    )


def build_inference_stage(config: ModelConfig, mesh: Mesh, *, index: int, dtype: torch.dtype) -> ModelStage:
    """Stage `index` of a language model that is only used, its parameters allocated in `dtype` and not yet filled.

    No FSDP, compilation or recomputation: every data-parallel rank holds its stages whole.
    """
    layout, objective = mesh.layout, NextToken()
    model = model_on_meta(config, objective, layout.layers_of(index), first=index == 0, last=index == layout.stages - 1)
    ranks = None
    if layout.tensor > 1:
        ranks = tensor_ranks(mesh.tensor, splits_sequence=True, splits_backward=False)
        apply_tensor_parallel(model, config, mesh.tensor, ranks)
    model.to(dtype).to_empty(device=mesh.device)
    model.tie()  # allocation made two parameters of a shared one
    model.eval().requires_grad_(False)
    loss = objective.loss(compile=False)
    return ModelStage(model, loss, attention_mask=objective.attention_mask, ranks=ranks)


def parameter_names(config: ModelConfig, objective: Objective, adapter: AdapterConfig | None = None) -> list[str]:
    """The canonical names of all parameters of the whole model, those of adapters last."""
    model = model_on_meta(config, objective, range(config.n_layers), first=True, last=True)
    return [*(name for name, _ in model.named_parameters()), *adapter_shapes(config, adapter)]


def check_parameter_patterns(
    config: ModelConfig, objective: Objective, *, optimizer: OptimizerConfig, adapter: AdapterConfig | None
) -> None:
    """ConfigError if a pattern of [optimizer] or [adapter] matches nothing, or if nothing is left to train."""
    names = parameter_names(config, objective, adapter)
    if adapter is None:
        check_patterns(names, optimizer)
        return
    check_adapter(config, adapter)
    check_also_train(names, adapter)
    check_patterns(names, optimizer, trained=[name for name in names if adapter.trains(name)])


def model_on_meta(config: ModelConfig, objective: Objective, layers: range, *, first: bool, last: bool) -> GPT:
    """A part of the objective's model, without memory. Whether the ends are tied is the same for every part."""
    with torch.device("meta"):
        embed, head = objective.front(config), objective.head(config)
        tied = config.tied and isinstance(embed, Embedding) and isinstance(head, VocabularyHead)
        model = GPT(replace(config, tied=tied), layers, first=first, last=last, embed=embed, head=head)
    if buffers := [name for name, _ in model.named_buffers()]:
        raise ConfigError(
            f"the objective's model holds buffers ({', '.join(buffers)}), which are neither initialised nor saved. "
            "Make them parameters, or compute them in forward"
        )
    return model

"""Stages of tensor ranks for inference: every rank holds the whole sequence, which may be one token.

A block has two all-reduces, one after attention and one after the MLP (arXiv 1909.08053, section 3). The layers read
the parameters of the stage that they replace, as plain tensors, and copy none.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT, Embedding
from gpt.model.heads import VocabularyHead
from gpt.training.objective import Objective
from parallel.adapters.attach import attach_local_adapters
from parallel.axes.gradients import local
from parallel.axes.local_layers import GatheredHead, LocalKeyValue, ReducedEmbedding, ReducedLinear
from parallel.axes.stage import ModelStage
from parallel.axes.tensor_parallel import KeyValueProjection, vocabulary_shard
from parallel.layout.mesh import Mesh
from parallel.parallelize import model_on_meta


def stages_for_inference(
    stages: list[ModelStage], mesh: Mesh, *, config: ModelConfig, objective: Objective, free: bool
) -> list[ModelStage]:
    """The stages as a model for inference runs them: on one tensor rank themselves, else on plain tensors.

    Unless `free`, the stages' weights must be gathered already, and stay so while the result is in use. With `free`, as
    under ZeRO 3, a block's weights are gathered before it runs and freed after it; data ranks must run together.
    """
    if mesh.layout.tensor == 1:
        return stages
    return [_local_stage(stage, mesh, config=config, objective=objective, free=free) for stage in stages]


def model_without_weights(source: GPT, *, config: ModelConfig, objective: Objective) -> GPT:
    """A model with the layers and ends of a stage's, on the meta device."""
    layers = [int(name) for name in source.blocks]
    return model_on_meta(
        config,
        objective,
        range(layers[0], layers[-1] + 1) if layers else range(0),
        first=source.embed is not None,
        last=source.head is not None,
    )


def _local_stage(stage: ModelStage, mesh: Mesh, *, config: ModelConfig, objective: Objective, free: bool) -> ModelStage:
    source = stage.model
    model = model_without_weights(source, config=config, objective=objective)
    _replace_layers(model, source, mesh)
    plain = ModelStage(model, stage.loss, attention_mask=stage.attention_mask, ranks=None).eval()
    for held, target in [(stage, plain), *((source.blocks[name], model.blocks[name]) for name in model.blocks)]:
        parameters = _pairs(held, target)
        if not free:
            _read(parameters)
            continue
        assert isinstance(held, FSDPModule)
        target.register_forward_pre_hook(partial(_gather, held, parameters))
        target.register_forward_hook(partial(_free, held))
    return plain


def _replace_layers(model: GPT, source: GPT, mesh: Mesh) -> None:
    """Put the layers that communicate in place of those of one device."""
    group = mesh.tensor.get_group()
    for name in model.blocks:
        block: Any = model.blocks[name]
        held: Any = source.blocks[name].attention
        block.attention.out, block.mlp.down = ReducedLinear(group), ReducedLinear(group)
        for part in ("k", "v"):
            if isinstance(getattr(held, part), KeyValueProjection):
                setattr(block.attention, part, LocalKeyValue(getattr(held, part)))
        attach_local_adapters(block, source.blocks[name])
    shard = vocabulary_shard(model.config.padded_vocab_size, model.vocab_size, group)
    if isinstance(model.embed, Embedding):
        setattr(model.embed, "tokens", ReducedEmbedding(shard))  # noqa: B010  another type
    if isinstance(model.head, VocabularyHead):
        model.head = GatheredHead(shard, group)


# A parameter: the module that holds it now, its name there, and the module that reads it.
Pair = tuple[nn.Module, str, nn.Module]


def _pairs(source: nn.Module, target: nn.Module) -> list[Pair]:
    """The parameters of a stage outside its blocks, or of a block, with the same modules of `target`."""
    targets = dict(target.named_modules(remove_duplicate=False))
    pairs = []
    for path, module in source.named_modules(remove_duplicate=False):
        name = f"{path}.".replace("_checkpoint_wrapped_module.", "").removesuffix(".")
        if not name.startswith("model.blocks."):
            pairs += [(module, key, targets[name]) for key, _ in module.named_parameters(recurse=False)]
    return pairs


@torch.no_grad()
def _read(pairs: list[Pair]) -> None:
    for module, key, target in pairs:
        target.register_parameter(key, nn.Parameter(local(getattr(module, key)), requires_grad=False))


def _gather(source: FSDPModule, pairs: list[Pair], *_: Any) -> None:
    source.unshard()
    _read(pairs)


def _free(source: FSDPModule, *_: Any) -> None:
    source.reshard()

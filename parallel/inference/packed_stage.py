"""Stages of one tensor rank for inference on a CPU: copies whose weights are packed, see gpt.inference.cpu_model."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from gpt.inference.cpu_model import PackedBlock, can_pack, packed_linear, packed_norm
from gpt.model.config import ModelConfig
from gpt.model.gpt import Block
from gpt.model.heads import VocabularyHead
from gpt.training.objective import Objective
from parallel.axes.stage import ModelStage
from parallel.inference.local_stage import model_without_weights
from parallel.layout.mesh import Mesh

ROWS = 8  # samples and rollouts have several sequences, so a single row is not what the weights are packed for


def can_pack_stages(stages: Sequence[ModelStage], mesh: Mesh, dtype: torch.dtype) -> bool:
    """Whether stages that compute in `dtype` can be packed: on a CPU, one tensor rank, layers without adapters."""
    if mesh.layout.tensor > 1 or not can_pack(mesh.device, dtype):
        return False
    return all(_is_plain(block) for stage in stages for block in stage.model.blocks.values())


def packed_stages(stages: Sequence[ModelStage], *, config: ModelConfig, objective: Objective) -> list[ModelStage]:
    """Packed copies of stages. They hold a copy of all blocks and of a vocabulary head, in the compute dtype.

    A block's gathered weights are freed as soon as they are packed. Those of the two ends stay gathered, since the
    copies read the embedding and the norm: they must stay so while the copies are in use. Under ZeRO, all data ranks
    must call it.
    """
    return [_packed(stage, config=config, objective=objective) for stage in stages]


@torch.no_grad()
def _packed(stage: ModelStage, *, config: ModelConfig, objective: Objective) -> ModelStage:
    source = stage.model
    model = model_without_weights(source, config=config, objective=objective)
    if isinstance(stage, FSDPModule):
        stage.unshard()
    for name, held in source.blocks.items():
        if isinstance(held, FSDPModule):
            held.unshard()
        model.blocks[name] = PackedBlock(_block(held), rows=ROWS)
        if isinstance(held, FSDPModule):
            held.reshard()
    if source.norm is not None:
        model.norm = packed_norm(source.norm)
    model.embed, head = source.embed, source.head
    model.head = packed_linear([head], rows=ROWS) if isinstance(head, VocabularyHead) else head
    return ModelStage(model, stage.loss, attention_mask=stage.attention_mask, ranks=None)


def _block(held: nn.Module) -> Block:
    """A block without the wrapper of recomputation."""
    block = getattr(held, "_checkpoint_wrapped_module", held)
    assert isinstance(block, Block)
    return block


def _is_plain(held: nn.Module) -> bool:
    """Whether the products of a block are those of its weights alone: no adapters, no other arithmetic."""
    layers = [layer for layer in _block(held).modules() if isinstance(layer, nn.Linear)]
    return all(type(layer) is nn.Linear and not layer._forward_hooks and not list(layer.children()) for layer in layers)

"""Merge the adapters of a checkpoint into weights that this rank holds, whole or in part."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpt.adapters.config import adapter_names, adapter_of
from gpt.adapters.low_rank import merged
from parallel.axes.gradients import local
from parallel.axes.initialisation import held_indices
from parallel.checkpoint.handle import Checkpoint
from parallel.checkpoint.load import read_tensors


@torch.no_grad()
def merge_saved_adapters(checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> None:
    """Add B A of the checkpoint's adapters to weights loaded from it, in place; nothing without an adapter.

    `weights`: by their names in the checkpoint, of any layout. Communicates nothing: each rank reads the small A and B
    of the weights that it holds.
    """
    adapter = adapter_of(checkpoint.state)
    if adapter is None:
        return
    for name, weight in weights.items():
        names = adapter_names(name)
        if not name.endswith(".weight") or names[0] not in checkpoint.index:
            continue
        shard = local(weight)
        if shard.numel():
            a, b = (tensor.to(shard.device) for _, tensor in read_tensors(checkpoint, names))
            rows, columns = held_indices(weight)
            shard.copy_(merged(shard, a[:, columns], b[rows], scale=adapter.scale))

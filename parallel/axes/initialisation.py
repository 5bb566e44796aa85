"""Fill this rank's shard of every parameter with the bits that one process would have."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard, _StridedShard

from gpt.adapters.low_rank import start_of_adapter
from gpt.model.config import ModelConfig
from gpt.model.initialisation import fill, start_of


@torch.no_grad()
def initialise_shards(parameters: Sequence[tuple[str, Tensor]], config: ModelConfig, *, seed: int) -> None:
    """Fill parameters, given by their canonical names, in place. No communication; time and memory follow the shard."""
    for name, parameter in parameters:
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter.data
        indices = held_indices(parameter)
        assert tuple(index.numel() for index in indices) == tuple(local.shape), f"{name}: shard of unexpected shape"
        shape = tuple(parameter.shape)
        start = start_of_adapter(name, shape) or start_of(name, config)
        fill(local, name, start, seed=seed, shape=shape, indices=indices)


def held_indices(parameter: Tensor) -> list[Tensor]:
    """For each dimension of a parameter, the indices into the whole tensor that this rank holds."""
    indices = [torch.arange(size, device=parameter.device) for size in parameter.shape]
    if not isinstance(parameter, DTensor):
        return indices
    mesh = parameter.device_mesh
    names = mesh.mesh_dim_names
    assert names is not None
    # The tensor axis splits first; the data axes split its shards.
    for axis in sorted(range(mesh.ndim), key=lambda i: names[i] != "tp"):
        placement = parameter.placements[axis]
        if isinstance(placement, (Shard, _StridedShard)):
            cut = indices[placement.dim]
            size = -(-cut.numel() // mesh.size(axis))
            begin = mesh.get_local_rank(axis) * size
            indices[placement.dim] = cut[begin : begin + size]
    return indices

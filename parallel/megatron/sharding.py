"""Our shards of a weight: those of a tensor rank, of which Megatron's parameters are made, and those of a data rank."""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gpt.training.objective import Objective
from parallel.axes.stage import canonical_parameters
from parallel.engines.settings import EngineSettings
from parallel.layout.mesh import Mesh
from parallel.parallelize import build_stage


@dataclass(frozen=True)
class ShardedWeight:
    """How the native engine spreads one weight over the ranks of a stage.

    `template`: its shard on the meta device. A tensor rank holds a part of dimension `tensor_dim`, or all if None.
    """

    name: str
    template: DTensor
    tensor_dim: int | None
    mesh: Mesh

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of a tensor rank's part."""
        shape = list(self.template.shape)
        if self.tensor_dim is not None:
            shape[self.tensor_dim] //= self.mesh.layout.tensor
        return tuple(shape)

    def on_tensor_ranks(self, part: Tensor) -> Tensor:
        """This tensor rank's part, as a DTensor over the tensor axis if that has several ranks. Makes no copy."""
        if self.mesh.layout.tensor == 1:
            return part
        return DTensor.from_local(
            part,
            self.mesh.tensor,
            [self.template.placements[-1]],
            run_check=False,
            shape=self.template.shape,
            stride=self.template.stride(),
        )

    def on_data_ranks(self, part: Tensor) -> DTensor:
        """The native engine's shard, with the rows of this data rank of a tensor rank's part. Makes a copy."""
        return DTensor.from_local(
            part[self._rows(self._shard_rank, part.size(0))].clone(),
            self.template.device_mesh,
            self.template.placements,
            run_check=False,
            shape=self.template.shape,
            stride=self.template.stride(),
        )

    def gather_rows(self, shard: Tensor) -> Tensor:
        """The whole part of this tensor rank, from the native engine's shards. Collective over the data ranks."""
        assert isinstance(shard, DTensor)
        ranks, rows = self.mesh.layout.data_shard, self.tensor_shape[0]
        if ranks == 1:
            return shard.to_local()
        taken = [self._rows(rank, rows) for rank in range(ranks)]
        return gather_parts(shard.to_local(), [part.stop - part.start for part in taken], self._shard_group)

    @property
    def _shard_group(self) -> dist.ProcessGroup:
        return self.mesh.whole["dp_shard"].get_group()

    @property
    def _shard_rank(self) -> int:
        return self.mesh.whole.get_local_rank("dp_shard")

    def _rows(self, rank: int, rows: int) -> slice:
        """The rows of a data rank: equal shares rounded up, so that the last ranks may have fewer or none."""
        share = -(-rows // self.mesh.layout.data_shard)
        return slice(min(rank * share, rows), min((rank + 1) * share, rows))


def gather_parts(part: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """Join the parts that the ranks of `group` hold of a tensor, cut along its first dimension. Collective.

    `sizes`: the rows of each rank's part. Memory: the largest part for each rank, and the result.
    """
    padded = part.new_zeros((max(sizes), *part.shape[1:]))
    padded[: part.size(0)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([found[:size] for found, size in zip(parts, sizes, strict=True)])


def sharded_weights(
    settings: EngineSettings, objective: Objective, mesh: Mesh, *, stage: int
) -> dict[str, ShardedWeight]:
    """The weights of a stage by canonical name. They cost no memory: the native stage is built on the meta device."""
    parallel = replace(settings.parallel, recompute="none", compile=False)
    built = build_stage(
        settings.model,
        parallel,
        replace(mesh, device=torch.device("meta")),
        index=stage,
        objective=objective,
        loss=objective.loss(compile=False),
        optimizer=settings.optimizer,
    )
    weights = {}
    for name, parameter in canonical_parameters(built):
        assert isinstance(parameter.data, DTensor)
        dim = None
        if mesh.layout.tensor > 1 and parameter.data.placements[-1].is_shard():
            dim = parameter.data.placements[-1].dim  # type: ignore[attr-defined]
        weights[name] = ShardedWeight(name, parameter.data, dim, mesh)
    return weights

"""The device mesh of a layout: one place that knows which rank sits where."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.layout.layout import Layout


@dataclass(frozen=True)
class Mesh:
    """Axes pp, dp_replicate, dp_shard, tp of one layout, and this rank's place on them."""

    layout: Layout
    device: torch.device
    whole: DeviceMesh

    @property
    def tensor(self) -> DeviceMesh:
        return self.whole["tp"]

    @property
    def data(self) -> DeviceMesh:
        """One axis when one copy is shared by all data ranks, else (replicate, shard), as fully_shard reads it."""
        if self.layout.data_shard == self.layout.data:
            return self.whole["dp_shard"]
        return self.whole["dp_replicate", "dp_shard"]

    @property
    def pipeline_group(self) -> dist.ProcessGroup:
        return self.whole["pp"].get_group()

    @property
    def pipeline_rank(self) -> int:
        return self.whole.get_local_rank("pp")

    @property
    def stages(self) -> tuple[int, ...]:
        """The pipeline stages of this rank, by their number in the whole pipeline."""
        return self.layout.stages_of(self.pipeline_rank)

    @property
    def tensor_rank(self) -> int:
        return self.whole.get_local_rank("tp")

    @property
    def data_rank(self) -> int:
        return self.whole.get_local_rank("dp_replicate") * self.layout.data_shard + self.whole.get_local_rank(
            "dp_shard"
        )

    def peer_of(self, data_rank: int) -> int:
        """The process of another data rank that holds what this one does."""
        replica, shard = divmod(data_rank, self.layout.data_shard)
        return int(self.whole.mesh[self.pipeline_rank, replica, shard, self.tensor_rank])

    def global_rank_of(self, stage: int) -> int:
        """The process that holds a stage of this rank's pipeline."""
        return dist.get_global_rank(self.pipeline_group, self.layout.rank_of(stage))


def build_mesh(layout: Layout, device: torch.device) -> Mesh:
    """Collective over all ranks of the default process group, whose size must be the layout's."""
    sizes = (layout.pipeline, layout.data // layout.data_shard, layout.data_shard, layout.tensor)
    whole = init_device_mesh(device.type, sizes, mesh_dim_names=("pp", "dp_replicate", "dp_shard", "tp"))
    return Mesh(layout, device, whole)

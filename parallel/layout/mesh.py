"""Map the axes of a layout to torch's device mesh, and ranks to their coordinates on it."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.layout.layout import Layout


@dataclass(frozen=True)
class Mesh:
    """The axes pp, dp_replicate, dp_shard and tp of one layout, and the coordinates of this rank."""

    layout: Layout
    device: torch.device
    whole: DeviceMesh

    @property
    def tensor(self) -> DeviceMesh:
        return self.whole["tp"]

    @property
    def data(self) -> DeviceMesh:
        """The data axis as fully_shard reads it: one axis if all data ranks share one copy, else (replicate, shard)."""
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
        """The pipeline stages of this rank, as indices into the whole pipeline."""
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
        """Return the global rank of another data rank with this rank's pipeline and tensor coordinates."""
        replica, shard = divmod(data_rank, self.layout.data_shard)
        return int(self.whole.mesh[self.pipeline_rank, replica, shard, self.tensor_rank])

    def global_rank_of(self, stage: int) -> int:
        """Return the global rank that holds a stage of this rank's pipeline."""
        return dist.get_global_rank(self.pipeline_group, self.layout.rank_of(stage))


def build_mesh(layout: Layout, device: torch.device) -> Mesh:
    """Build the mesh. Collective over all ranks of the default process group; its size must be the layout's."""
    sizes = (layout.pipeline, layout.data // layout.data_shard, layout.data_shard, layout.tensor)
    whole = init_device_mesh(device.type, sizes, mesh_dim_names=("pp", "dp_replicate", "dp_shard", "tp"))
    return Mesh(layout, device, whole)

"""The coordinates of ranks on the device mesh, by a process group that sends nothing."""

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from parallel.layout.mesh import build_mesh


@pytest.mark.parametrize("rank", range(16))
def test_ranks_count_tensor_fastest_then_data_then_pipeline(resolve, rank):
    layout = resolve(world_size=16, tensor=2, pipeline=2, data_shard=2)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=16)
    try:
        mesh = build_mesh(layout, torch.device("cpu"))
        assert (mesh.tensor_rank, mesh.data_rank, mesh.pipeline_rank) == (rank % 2, rank // 2 % 4, rank // 8)
        assert [mesh.peer_of(data_rank) for data_rank in range(4)] == [
            rank // 8 * 8 + 2 * d + rank % 2 for d in range(4)
        ]
        assert mesh.stages == (rank // 8,)
        assert [mesh.global_rank_of(stage) for stage in (0, 1)] == [rank % 8, rank % 8 + 8]
        assert mesh.data.ndim == 2, "hybrid sharding: replicate and shard"
        assert mesh.tensor.size() == 2
    finally:
        dist.destroy_process_group()

"""Groups of gloo with one worker thread each."""

from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from parallel.layout.gloo_groups import use_one_gloo_worker


def test_all_groups_have_one_worker():
    """The group of all ranks, another, and those of a mesh. They have torch's timeout, and collectives in flight."""
    use_one_gloo_worker()
    use_one_gloo_worker()
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=70))
    try:
        mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b"))
        groups = [dist.group.WORLD, dist.new_group(backend="gloo"), mesh.get_group("a"), mesh.get_group("b")]
        backends = [group._get_backend(torch.device("cpu")) for group in groups]
        assert [backend.options._threads for backend in backends] == [1] * 4
        assert backends[0].options._timeout == timedelta(seconds=70)
        _set_pg_timeout(timedelta(seconds=80), groups[1])
        assert backends[1].options._timeout == timedelta(seconds=80)

        x = torch.arange(4.0)
        in_flight = [funcol.all_gather_single(x, 0, groups[0]) for _ in range(200)]
        assert all(torch.equal(each.wait(), x) for each in in_flight)
    finally:
        dist.destroy_process_group()

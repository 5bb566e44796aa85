"""What the tests of several rooms need."""

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore


@pytest.fixture(scope="module")
def process_group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()

"""The native engine on one real GPU: where the host waits, and the bits of two equal steps.

benchmarks/gpu_day compares its numbers with float64.
"""

import pytest
import torch
import torch.distributed as dist
from layout_runs import OPTIMIZER, settings_of, tokens_of_step
from torch._C._distributed_c10d import HashStore

from gpt.losses.batch import Batch
from gpt.model.attention import kernel_order
from gpt.training.objective import NextToken
from parallel.engines.choose import build_engine

pytestmark = pytest.mark.gpu
KEYS = ({}, {"recompute": "selective"}, {"recompute": "full"}, {"zero_stage": 3})


@pytest.fixture
def device():
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", store=HashStore(), rank=0, world_size=1)
    with kernel_order(device):
        yield device
    dist.destroy_process_group()


def batch_of(step):
    tokens = tokens_of_step(step)
    return Batch(tokens[:, :-1], tokens[:, 1:])


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_forward_and_backward_do_not_wait_for_the_gpu(device, keys):
    """torch raises at each wait that it knows. The step itself waits once, for its sums."""
    settings = settings_of({"world_size": 1, "parallel": keys | {"precision": "bf16"}, "model": {"n_layers": 2}})
    engine = build_engine(settings, objective=NextToken(), device=device)
    for step in range(2):  # the first step allocates
        engine.forward_backward(batch_of(step))
        engine.optimizer_step(OPTIMIZER.learning_rate)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.forward_backward(batch_of(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert engine.optimizer_step(OPTIMIZER.learning_rate).updated


def test_equal_steps_give_equal_weights(device):
    digests = []
    for _ in range(2):
        settings = settings_of({"world_size": 1, "parallel": {"precision": "bf16"}, "model": {"n_layers": 2}})
        engine = build_engine(settings, objective=NextToken(), device=device)
        engine.forward_backward(batch_of(0))
        engine.optimizer_step(OPTIMIZER.learning_rate)
        digests.append(engine.weights_digest())
    assert digests[0] == digests[1]

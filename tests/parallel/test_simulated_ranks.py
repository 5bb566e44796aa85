"""All ranks together send like n log n at most: messages and bytes for 125 and for 500 simulated ranks."""

import pytest
import torch
from rank_parts import PARTS
from simulated_group import on_simulated_ranks
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.agreement import combine

FEW, MANY = 125, 500
MAX_GROWTH = 5.5  # (MANY log MANY) / (FEW log FEW) is 5.1, and (MANY / FEW) squared 16


@pytest.mark.parametrize("part", [name for name in PARTS if name != "monitors' settings"])
def test_messages_and_bytes_of_all_ranks_grow_like_n_log_n(part, tmp_path):
    few, many = ((tmp_path / str(n_ranks)) for n_ranks in (FEW, MANY))
    for folder in (few, many):
        folder.mkdir()
    before, after = PARTS[part](FEW, few), PARTS[part](MANY, many)
    if before.messages is not None:
        assert after.messages <= MAX_GROWTH * before.messages
    assert after.bytes <= MAX_GROWTH * before.bytes


def test_a_monitor_gets_the_processes_of_its_machine_and_the_name_of_each_node(tmp_path):
    assert PARTS["monitors' settings"](MANY, tmp_path).bytes < MANY * (3000 + 30 * MANY / 8)


class CountReads(TorchDispatchMode):
    """Count how often a number of a tensor is read: on a GPU, each read waits for it."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_rank_0_waits_for_its_device_as_often_for_many_ranks_as_for_few():
    reads = []
    for n_ranks in (2, 50):
        with CountReads() as counted:
            on_simulated_ranks(lambda: combine("value", len, None), n_ranks)
        reads.append(counted.reads)
    assert reads[0] == reads[1]

"""The checksum of a tensor, and what one rank without replicas finds. tests/launch has runs with flipped bits."""

import pytest
import torch
import torch.distributed as dist

from parallel.health.replica_check import ReplicaCheck, TensorMismatch, checksum, describe


@pytest.fixture
def alone(tmp_path):
    """This process as the only rank of a group."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
def test_the_checksum_is_the_weighted_sum_of_the_elements_bits(dtype):
    tensor = (torch.randn(3, 4099, generator=torch.Generator().manual_seed(1)) * 50).to(dtype)
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.flatten().view(width).tolist()
    total = sum(value * (2 * i + 1) for i, value in enumerate(bits)) % 2**64
    assert checksum(tensor).item() % 2**64 == total


def test_any_flipped_bit_exchange_or_sign_of_zero_changes_the_checksum():
    tensor = torch.zeros(5000)
    usual = checksum(tensor).item()
    for position in (0, 4095, 4096, 4999):
        for bit in (0, 23, 31):
            changed = tensor.clone()
            changed.view(torch.int32)[position] ^= torch.tensor(-(2**31) if bit == 31 else 1 << bit, dtype=torch.int32)
            assert checksum(changed).item() != usual
    one, other = torch.arange(5000.0), torch.arange(5000.0)
    other[[3, 4998]] = other[[4998, 3]]
    assert checksum(one).item() != checksum(other).item()


def test_equal_tensors_of_one_name_are_replicas_and_a_difference_is_named(alone):
    weight, again = torch.ones(4), torch.ones(4)
    check = ReplicaCheck(
        [("tied", weight, [weight]), ("tied", again, [again])], kinds=("model.",), device=weight.device
    )
    assert check.compare() == []
    again[2] = 2.0
    assert check.compare() == [TensorMismatch("model.tied", (0,), ())]
    lone = ReplicaCheck([("weight", weight, [weight])], kinds=("model.",), device=weight.device)
    assert lone.compare() == [], "nothing to compare with"


def test_a_message_names_the_odd_rank_or_says_that_no_majority_shows_it(monkeypatch):
    host = "node"
    monkeypatch.setattr("socket.gethostname", lambda: host)
    (odd, unknown) = TensorMismatch("model.a", (0,), (0,)), TensorMismatch("model.b", (0,), ())
    assert describe([odd]) == "model.a on rank 0 (node) differs from its replicas on "
    assert describe([unknown]).startswith(
        "the replicas of model.b on rank 0 (node) differ, and no majority shows which"
    )
    assert describe([unknown] * 6).endswith("; and 2 more")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_the_checksum_of_a_gpu_is_that_of_a_cpu(dtype):
    tensor = (torch.randn(3, 4099, generator=torch.Generator().manual_seed(1)) * 50).to(dtype)
    assert checksum(tensor.cuda()).item() == checksum(tensor).item()

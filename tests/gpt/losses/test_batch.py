"""A batch: its tensors by name, its micro-batches, and rows that count no loss."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from gpt.losses.batch import Batch

N, T = 4, 3


def full_batch():
    tokens = torch.arange(N * T).view(N, T)
    return Batch(
        tokens,
        tokens + 1,
        loss_mask=tokens % 2 == 0,
        positions=torch.arange(T).expand(N, T),
        segment_ids=torch.zeros(N, T, dtype=torch.int64),
        lengths=torch.tensor([1, 2, 3, 3]),
        extra={"label": torch.arange(N), "targets": torch.ones(N, 2)},
    )


def equal(one, other):
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_tensors_by_name_make_the_same_batch():
    """An extra tensor may have the name of a field."""
    batch = full_batch()
    assert set(batch.tensors()) == {
        "inputs",
        "targets",
        "loss_mask",
        "positions",
        "segment_ids",
        "lengths",
        "extra.label",
        "extra.targets",
    }
    assert equal(Batch.from_tensors(batch.tensors()), batch)
    plain = Batch(batch.inputs, batch.targets)
    assert set(plain.tensors()) == {"inputs", "targets"}
    again = Batch.from_tensors(plain.tensors())
    assert (again.loss_mask, again.positions, again.segment_ids, dict(again.extra)) == (None, None, None, {})


def test_micro_batches_are_rows_in_order():
    batch = full_batch()
    assert len(batch) == N
    parts = list(batch.split(2))
    assert [len(part) for part in parts] == [2, 2]
    for part, rows in zip(parts, (slice(0, 2), slice(2, 4)), strict=True):
        assert equal(part, Batch.from_tensors({name: tensor[rows] for name, tensor in batch.tensors().items()}))


def test_rows_left_out_count_no_loss():
    batch = full_batch()
    assert batch.without_rows([]) is batch
    left = batch.without_rows([1, 3])
    assert torch.equal(left.loss_mask[[0, 2]], batch.loss_mask[[0, 2]])
    assert not left.loss_mask[[1, 3]].any()
    assert batch.loss_mask[1].any(), "the batch itself stays as it was"
    plain = Batch(batch.inputs, batch.targets).without_rows([0])
    assert plain.loss_mask.tolist() == [[False] * T, *[[True] * T] * (N - 1)]


def test_a_batch_on_its_device_is_returned_as_it_is():
    batch = full_batch()
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}


def test_only_a_copy_to_a_gpu_is_not_waited_for():
    """The calls alone, since this machine may have no GPU. Tensors of the meta device stand for those on a GPU."""

    class Calls(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            name = getattr(function, "__name__", "")
            seen.append((name, (kwargs or {}).get("non_blocking")))
            return args[0] if name in ("pin_memory", "to") else function(*args, **(kwargs or {}))

    for held, target, pinned in (("cpu", "cuda", True), ("meta", "cuda", False), ("meta", "cpu", False)):
        seen = []
        batch = Batch(torch.zeros(2, 3, device=held), torch.zeros(2, 3, device=held))
        with Calls():
            batch.to(torch.device(target))
        calls = [call for call in seen if call[0] in ("pin_memory", "to")]
        expected = [("pin_memory", None)] * 2 + [("to", True)] * 2 if pinned else [("to", None)] * 2
        assert calls == expected, (held, target)


@pytest.mark.gpu
def test_copies_to_a_gpu_are_whole_although_the_host_goes_on():
    """Each copy is still under way when the batch is overwritten and freed; the GPU is kept busy before it."""
    slow = torch.randn(4096, 4096, device="cuda")
    moved, expected = [], []
    for i in range(20):
        tokens = torch.full((64, 2048), i)
        batch = Batch(tokens, tokens + 1, extra={"reward": torch.full((64,), float(i))})
        slow = slow @ slow * 1e-4
        moved.append(batch.to(torch.device("cuda", 0)))
        expected.append(i)
        tokens.fill_(-1)
        del batch
    for i, batch in zip(expected, moved, strict=True):
        assert (batch.inputs == i).all()
        assert (batch.targets == i + 1).all()
        assert (batch.extra["reward"] == i).all()

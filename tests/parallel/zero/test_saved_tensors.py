"""The tensors of the DeepSpeed engine in a checkpoint: names, and what a load writes back. On one process."""

import torch
from deepspeed_ranks import frozen_fragments
from torch.distributed.tensor import DTensor

from parallel.zero.saved_tensors import ZeroTensors


def test_a_load_writes_back_what_the_staged_copies_hold(process_group):
    fragments, *_ = frozen_fragments(torch.bfloat16)
    tensors = ZeroTensors(fragments)
    staged = tensors.by_name()
    assert list(staged) == [f"model.{one.name}" for one in fragments.all] == list(tensors.weights())
    assert all(isinstance(tensor, DTensor) and tensor.dtype == torch.float32 for tensor in staged.values())
    before = [one.weight.clone() for one in fragments.all]
    for tensor in staged.values():
        tensor.to_local().add_(1.0)
    assert all(torch.equal(*pair) for pair in zip(before, (one.weight for one in fragments.all), strict=True))
    tensors.finish_load(staged, {"optimizer_steps": 7})
    assert tensors.with_steps({"a": 1}) == {"a": 1, "optimizer_steps": 7}
    for one, old in zip(fragments.all, before, strict=True):
        assert torch.equal(one.weight, old + 1.0)
        assert torch.equal(one.parameter, (old + 1.0).bfloat16().view(one.shape))


def test_weights_alone_leave_the_step_count(process_group):
    fragments, _, _ = frozen_fragments(torch.float32)
    fragments.set_steps(3)
    tensors = ZeroTensors(fragments)
    name, tensor = next(iter(tensors.weights().items()))
    tensor.to_local().zero_()
    tensors.finish_load({name: tensor}, None)
    assert fragments.steps == 3
    assert not fragments.all[0].weight.any()
    assert fragments.all[1].weight.any(), "the others stay"

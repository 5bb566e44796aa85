"""The optimizer's state tensors: those of torch's own optimizers, allocated late, restored exactly."""

import pytest
import torch
from torch import nn

from gpt.training.optimizer import OptimizerConfig, ParameterGroup, build_optimizer
from parallel.engines.optimizer_state import OptimizerState


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [
        ("weight", nn.Parameter(torch.randn(3, 4, generator=generator))),
        ("bias", nn.Parameter(torch.randn(3, generator=generator))),
        ("other", nn.Parameter(torch.randn(2, generator=generator))),
    ]


def config_of(kind, **more):
    groups = (ParameterGroup(("bias",), lr_scale=0.5),)
    return OptimizerConfig(1e-2, kind=kind, weight_decay=0.1, groups=groups, **more)


def set_gradients(named, step):
    for number, (_, parameter) in enumerate(named):
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.1 * (step + 1)) * (-1) ** number


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_steps_have_the_bits_of_torchs_optimizer(kind):
    ours, theirs = parameters(), parameters()
    state = OptimizerState(ours, config_of(kind))
    reference = build_optimizer(theirs, config_of(kind))
    for step in range(3):
        lr = 1e-2 / (step + 1)
        set_gradients(ours, step)
        set_gradients(theirs, step)
        state.step(lr)
        for group in reference.param_groups:
            group["lr"] = lr * group["lr_scale"]
        reference.step()
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        assert all(torch.equal(tensor, reference.state[b][key]) for key, tensor in state.tensors_of(a).items())
    assert state.steps == 3
    state.clear_gradients()
    assert all(parameter.grad is None for _, parameter in ours)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_restored_tensors_and_steps_continue_bit_for_bit(kind):
    """As a checkpoint restores them: copied in place, then the count of steps."""
    whole, first, second = parameters(), parameters(), parameters()
    straight = OptimizerState(whole, config_of(kind))
    before, after = OptimizerState(first, config_of(kind)), OptimizerState(second, config_of(kind))
    for step in range(2):
        for named, state in ((whole, straight), (first, before)):
            set_gradients(named, step)
            state.step(1e-2)
    for (_, a), (_, b) in zip(first, second, strict=True):
        b.data.copy_(a.data)
        for key, tensor in before.tensors_of(a).items():
            after.tensors_of(b)[key].copy_(tensor)
    after.steps = before.steps
    for named, state in ((whole, straight), (second, after)):
        set_gradients(named, 2)
        state.step(1e-2)
    assert after.steps == 3
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(whole, second, strict=True))


def test_frozen_parameters_have_no_state():
    named = parameters()
    named[0][1].requires_grad_(False)
    state = OptimizerState(named, config_of("adamw", frozen=("weight",)))
    assert state.tensors_of(named[0][1]) == {}
    assert state.tensors_of(named[1][1]).keys() == {"exp_avg", "exp_avg_sq"}
    assert len(state.all_tensors()) == 2 * 3, "two moments and a count of steps for each of two parameters"


@pytest.mark.parametrize("config", [None, config_of("adamw", frozen=("*",))], ids=["none", "all frozen"])
def test_a_rank_with_nothing_to_train_counts_steps_all_the_same(config):
    """All ranks of a pipeline must save the same count, also those whose stages are frozen."""
    named = parameters()
    for _, parameter in named:
        parameter.requires_grad_(False)
    state = OptimizerState(named, config)
    state.step(1e-2)
    assert state.steps == 1
    assert state.all_tensors() == []
    assert not any(state.tensors_of(parameter) for _, parameter in named)
    state.steps = 7
    assert state.steps == 7


def test_state_is_allocated_on_first_use():
    """An engine that only evaluates never pays for it."""
    named = parameters()
    state = OptimizerState(named, config_of("adamw"))
    assert not state._optimizer.state
    assert not any(tensor.any() for tensor in state.all_tensors()), "zeros"
    assert len(state._optimizer.state) == 3

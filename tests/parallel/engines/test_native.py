"""The native engine on one process: what a step reports, when it changes nothing, and engines that train nothing.

test_layouts.py compares layouts with plain torch.
"""

import dataclasses
import math

import pytest
import torch
from layout_runs import OPTIMIZER, settings_of, tokens_of_step

from gpt.errors import ConfigError
from gpt.losses.batch import Batch
from gpt.training.objective import NextToken
from parallel.engines.choose import build_engine

LR = OPTIMIZER.learning_rate


@pytest.fixture
def settings():
    return settings_of({"world_size": 1, "parallel": {}, "model": {"n_layers": 2}})


@pytest.fixture
def engine(process_group, settings):
    return build(settings)


def build(settings):
    return build_engine(settings, objective=NextToken(), device=torch.device("cpu"))


def batch_of(step):
    tokens = tokens_of_step(step)
    return Batch(tokens[:, :-1], tokens[:, 1:])


def test_a_step_updates_clears_gradients_and_reports_flags(engine):
    before = engine.weights_digest()
    engine.forward_backward(batch_of(0))
    assert any(parameter.grad is not None for _, parameter in engine.parameters)
    result = engine.optimizer_step(LR, flags=(False, True))
    assert (result.skipped, result.discarded, result.flags) == (False, False, (False, True))
    assert result.loss.tokens == batch_of(0).targets.numel()
    assert result.loss.mean == pytest.approx(math.log(120), rel=0.05), "a fresh model knows nothing"
    assert engine.weights_digest() != before
    assert all(parameter.grad is None for _, parameter in engine.parameters)
    assert engine.optimizer.steps == 1


def test_a_discarded_step_leaves_no_trace(engine, settings):
    engine.forward_backward(batch_of(7))
    result = engine.optimizer_step(LR, discard=True)
    assert (result.skipped, result.discarded) == (False, True)
    other = build(settings)
    for each in (engine, other):
        each.forward_backward(batch_of(0))
        each.optimizer_step(LR)
    assert engine.weights_digest() == other.weights_digest()
    assert engine.optimizer.steps == other.optimizer.steps == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_skips_the_step(engine, value):
    before = engine.weights_digest()
    engine.forward_backward(batch_of(0))
    engine.parameters[0][1].grad.to_local().view(-1)[0] = value
    result = engine.optimizer_step(LR)
    assert (result.skipped, result.discarded) == (True, False)
    assert math.isfinite(result.loss.mean)
    assert engine.weights_digest() == before
    assert engine.optimizer.steps == 0


def test_two_batches_before_a_step_count_as_one(engine, settings):
    both = build(settings)
    for step in (0, 1):
        both.forward_backward(batch_of(step))
    result = both.optimizer_step(LR)
    one, other = batch_of(0), batch_of(1)
    engine.forward_backward(Batch(torch.cat((one.inputs, other.inputs)), torch.cat((one.targets, other.targets))))
    whole = engine.optimizer_step(LR)
    assert result.loss.tokens == whole.loss.tokens == 2 * one.targets.numel()
    assert result.loss.mean == pytest.approx(whole.loss.mean, rel=1e-6)
    assert result.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)


def test_rows_without_loss_do_not_count(engine):
    batch = batch_of(0)
    part = Batch(batch.inputs[:6], batch.targets[:6])
    whole, left = engine.evaluate([part]), engine.evaluate([batch.without_rows([6, 7])])
    assert left.tokens == whole.tokens
    assert left.mean == pytest.approx(whole.mean, rel=1e-6)
    assert engine.evaluate([batch.without_rows(range(8))]).tokens == 0


def test_an_engine_without_an_optimizer_evaluates_alone(process_group, settings, engine):
    only = build(dataclasses.replace(settings, optimizer=None))
    assert not any(parameter.requires_grad for _, parameter in only.parameters)
    assert only.optimizer.all_tensors() == []
    assert only.evaluate([batch_of(0)]) == engine.evaluate([batch_of(0)])


def test_patterns_are_checked_against_the_whole_model(process_group, settings):
    optimizer = dataclasses.replace(OPTIMIZER, frozen=("blocks.2.*",))
    with pytest.raises(ConfigError, match=r"optimizer\.frozen\[0\] = 'blocks\.2\.\*' is invalid"):
        build(dataclasses.replace(settings, optimizer=optimizer))


def test_one_process_has_no_replicas_to_compare(engine):
    assert engine.check_replicas() is None
    assert engine.all_gather_objects([1, "two"]) == [[1, "two"]]


def test_a_step_without_a_single_target_is_skipped(engine):
    before = engine.weights_digest()
    engine.forward_backward(batch_of(0).without_rows(range(len(batch_of(0)))))
    result = engine.optimizer_step(LR)
    assert (result.skipped, result.loss.tokens) == (True, 0)
    assert engine.weights_digest() == before


def test_a_loss_and_a_mask_never_see_the_inputs(engine, monkeypatch):
    """Only the first pipeline stage has them; what works on one process must work there too."""
    seen = []
    loss = engine.stages[-1].loss
    monkeypatch.setattr(engine.stages[-1], "loss", Seeing(loss, seen))
    engine.forward_backward(batch_of(0))
    engine.optimizer_step(LR)
    assert {tuple(shape) for shape in seen} == {(0,)}


class Seeing:
    def __init__(self, loss, seen):
        self.loss, self.seen, self.metric_names = loss, seen, loss.metric_names

    def __call__(self, outputs, batch):
        self.seen.append(batch.inputs.shape)
        return self.loss(outputs, batch)

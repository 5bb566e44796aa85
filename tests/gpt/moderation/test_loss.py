"""The loss against a loop over labels in Python's floats; unknown labels have no gradient at all."""

import math
from dataclasses import replace

import pytest
import torch

from gpt.losses.base import ShownMetrics
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.moderation.loss import ClassifierLoss

LOSS = ClassifierLoss(("A", "A2", "B"), (1.0, 3.0, 0.5), (-1, 0, -1))
ROWS, LENGTH = 4, 6


def drawn(seed=0, dtype=torch.float64):
    """Logits, and targets with about half of the positions ends of texts."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, LENGTH, 3, generator=draw, dtype=dtype) * 3
    states = torch.randint(0, 3, (ROWS, LENGTH, 3), generator=draw, dtype=torch.int8)
    ends = torch.rand(ROWS, LENGTH, 1, generator=draw) < 0.5
    batch = Batch(torch.zeros(ROWS, LENGTH, dtype=torch.int64), states.where(ends, IGNORE))
    return logits.requires_grad_(), batch


def by_hand(logits, targets, *, gamma=0.0, constrain=True):
    """The sum and the number of known labels, label by label."""
    total, count = 0.0, 0
    for own, states in zip(logits.reshape(-1, 3).tolist(), targets.reshape(-1, 3).tolist(), strict=True):
        shown = [max(own[0], own[1]), *own[1:]] if constrain and states[1] > 0 else own
        for logit, state, weight in zip(shown, states, LOSS.weights, strict=True):
            if state > 0:
                right = 1 / (1 + math.exp(-logit if state == 2 else logit))
                total -= math.log(right) * (1 - right) ** gamma * (weight if state == 2 else 1)
                count += 1
    return total, count


@pytest.mark.parametrize(("gamma", "constrain"), [(0.0, True), (2.0, True), (0.0, False), (0.5, False)])
def test_the_loss_equals_a_loop_over_labels(gamma, constrain):
    logits, batch = drawn()
    found = replace(LOSS, focal_gamma=gamma, constrain=constrain)(logits, batch)
    total, count = by_hand(logits, batch.targets, gamma=gamma, constrain=constrain)
    assert found.sum.item() == pytest.approx(total, rel=1e-12)
    assert found.reported.item() == found.sum.item()
    assert found.count.item() == count


def test_a_plain_loss_is_pytorchs():
    logits, batch = drawn(3)
    known = batch.targets > 0
    labels = (batch.targets == 2).double()
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[known], labels[known], reduction="sum", pos_weight=torch.tensor([1.0, 3.0, 0.5]).expand_as(logits)[known]
    )
    assert replace(LOSS, constrain=False)(logits, batch).sum.item() == pytest.approx(theirs.item(), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_gradient_of_an_unknown_label_is_exactly_0(gamma):
    logits, batch = drawn()
    (gradient,) = torch.autograd.grad(replace(LOSS, focal_gamma=gamma)(logits, batch).sum, logits)
    unknown = batch.targets <= 0
    assert unknown.any()
    assert not gradient[unknown].any()
    assert gradient[~unknown].any()


@pytest.mark.parametrize("state", [1, 2])
def test_a_known_parent_learns_where_a_child_without_label_has_the_larger_logit(state):
    logits = torch.tensor([[[-1.0, 0.5, 0.0]]], dtype=torch.float64, requires_grad=True)
    batch = Batch(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[[state, 0, 0]]], dtype=torch.int8))
    for loss in (LOSS, replace(LOSS, focal_gamma=2.0)):
        found = loss(logits, batch).sum
        (gradient,) = torch.autograd.grad(found, logits)
        own = logits.detach()[..., :1].requires_grad_()
        one = replace(batch, targets=batch.targets[..., :1])
        alone = replace(loss, ids=("A",), weights=(1.0,), parents=(-1,))(own, one)
        (expected,) = torch.autograd.grad(alone.sum, own)
        assert found.item() == alone.sum.item()
        assert gradient.flatten().tolist() == [expected.item(), 0, 0]


def test_masked_rows_count_nothing():
    logits, batch = drawn()
    total, count = by_hand(logits[1:], batch.targets[1:])
    found = LOSS(logits, batch.without_rows([0]))
    assert (found.sum.item(), found.count.item()) == (pytest.approx(total, rel=1e-12), count)
    nothing = LOSS(logits, batch.without_rows(range(ROWS)))
    assert (nothing.sum.item(), nothing.count.item()) == (0, 0)


def test_an_evaluation_shows_the_loss_of_each_category_and_violated_parents():
    logits, batch = drawn()
    loss = replace(LOSS, constrain=False)
    with torch.no_grad():
        found = loss(logits, batch)
    assert set(found.metrics) == set(loss.evaluation_names)
    assert isinstance(loss, ShownMetrics)
    shown = loss.shown({name: float(value) / float(found.count) for name, value in found.metrics.items()})
    for i, name in enumerate(loss.ids):
        targets = torch.full_like(batch.targets, IGNORE)
        targets[..., i] = batch.targets[..., i]
        total, count = by_hand(logits, targets, constrain=False)
        assert shown[f"loss_{name}"] == pytest.approx(total / count, rel=1e-6)
    ends = batch.targets[..., 0] != IGNORE
    violated = (logits[..., 1] > logits[..., 0])[ends]
    assert shown["violations"] == pytest.approx(violated.double().mean().item(), rel=1e-9)
    assert math.isnan(loss.shown(dict.fromkeys(loss.evaluation_names, 0.0))["loss_A"])


def test_values_are_the_logits_that_a_user_gets():
    logits, batch = drawn()
    found = LOSS.values(torch.cat((logits, logits[..., :1]), dim=-1), batch)  # a critic's value is last
    assert found.shape[-1] == LOSS.n_values == 3
    assert torch.equal(found[..., 0], torch.maximum(logits[..., 0], logits[..., 1]))
    assert torch.equal(replace(LOSS, constrain=False).values(logits, batch), logits)

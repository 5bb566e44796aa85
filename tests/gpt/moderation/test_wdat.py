"""One step of domain adversarial training against the formula, written by hand in float64 (arXiv 2208.03274, 3.4)."""

import numpy as np
import pytest
import torch

from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.moderation.heads import CategoryHead
from gpt.moderation.loss import ClassifierLoss
from gpt.moderation.wdat import Critic, clip_critic, domain_distance

D, H, WEIGHT, TEXTS = 5, 7, 0.01, 12


def head_and_texts():
    """A head with a critic, representations of texts that the trunk gives by a matrix, and labels: two in three texts
    have one, the others are of the target domain."""
    draw = torch.Generator().manual_seed(1)
    head = CategoryHead(D, 1, kind="linear", critic=Critic(D, hidden=H, weight=WEIGHT)).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.4)
    trunk = torch.randn(D, D, generator=draw, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(TEXTS, D, generator=draw, dtype=torch.float64)
    states = torch.tensor([[i % 3] for i in range(TEXTS)], dtype=torch.int8)  # unknown, negative, positive
    return head, trunk, texts, states


def ours(head, trunk, texts, states):
    loss = ClassifierLoss(("H",), (1.0,), (-1,), adversarial=True)
    batch = Batch(torch.zeros(1, TEXTS, dtype=torch.int64), states[None])
    found = loss(head((texts @ trunk)[None]), batch)
    (found.sum / found.count).backward()
    return found


def by_hand(head, trunk, texts, states):
    """Numpy: the loss, the distance, and the gradients of each player's own objective: the trunk and the classifier
    minimise L_c + WEIGHT * W, the critic maximises W."""
    z = (texts @ trunk).detach().numpy()
    w = {name: p.detach().numpy() for name, p in head.named_parameters()}
    state = states[:, 0].numpy()
    known = state > 0
    p = 1 / (1 + np.exp(-(z @ w["classes.weight"][0] + w["classes.bias"])))
    label = (state == 2).astype(float)
    losses = -(label * np.log(p) + (1 - label) * np.log(1 - p))
    d_logit = np.where(known, p - label, 0) / known.sum()
    a1 = z @ w["critic.first.weight"].T + w["critic.first.bias"]
    h1 = np.maximum(a1, 0)
    a2 = h1 @ w["critic.second.weight"].T + w["critic.second.bias"]
    h2 = np.maximum(a2, 0)
    f = h2 @ w["critic.value.weight"][0] + w["critic.value.bias"]
    share = np.where(known, 1 / known.sum(), -1 / (~known).sum())  # W = share @ f
    d_a2 = share[:, None] * w["critic.value.weight"] * (a2 > 0)
    d_a1 = (d_a2 @ w["critic.second.weight"]) * (a1 > 0)
    climb = {
        "critic.value.weight": (share @ h2)[None],
        "critic.value.bias": np.array([share.sum()]),
        "critic.second.weight": d_a2.T @ h1,
        "critic.second.bias": d_a2.sum(0),
        "critic.first.weight": d_a1.T @ z,
        "critic.first.bias": d_a1.sum(0),
    }
    gradients = {name: -value for name, value in climb.items()}  # a maximum is climbed
    gradients["classes.weight"], gradients["classes.bias"] = (d_logit @ z)[None], np.array([d_logit.sum()])
    d_z = np.outer(d_logit, w["classes.weight"][0]) + WEIGHT * d_a1 @ w["critic.first.weight"]
    return losses[known].mean(), share @ f, gradients, texts.numpy().T @ d_z


def test_one_step_equals_the_formula():
    head, trunk, texts, states = head_and_texts()
    loss, distance, gradients, of_trunk = by_hand(head, trunk, texts, states)
    found = ours(head, trunk, texts, states)
    assert (found.reported / found.count).item() == pytest.approx(loss, abs=1e-12)
    assert (found.metrics["distance"] / found.count).item() == pytest.approx(distance, abs=1e-12)
    for name, parameter in head.named_parameters():
        assert np.allclose(parameter.grad.numpy(), gradients[name], rtol=0, atol=1e-12), name
    assert np.allclose(trunk.grad.numpy(), of_trunk, rtol=0, atol=1e-12)


def test_one_domain_alone_has_no_distance_and_no_gradient():
    values = torch.randn(1, 4, requires_grad=True)
    everything, nothing = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    for source, target in ((everything, nothing), (nothing, everything), (nothing, nothing)):
        found = domain_distance(values, source, target)
        (gradient,) = torch.autograd.grad(found, values)
        assert found.item() == 0
        assert not gradient.any()


def test_the_distance_does_not_change_with_a_constant_or_the_sizes_of_the_domains():
    values = torch.randn(1, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    source = torch.arange(30)[None] < 24
    found = domain_distance(values, source, ~source)
    assert found.item() == pytest.approx((values[source].mean() - values[~source].mean()).item(), abs=1e-12)
    assert domain_distance(values + 5, source, ~source).item() == pytest.approx(found.item(), abs=1e-12)


def test_only_the_critic_is_clipped():
    named = [("head.critic.first.weight", torch.tensor([1.0, -1.0, 0.004])), ("head.up.weight", torch.tensor([1.0]))]
    clip_critic(named, 0.01)
    assert named[0][1].tolist() == pytest.approx([0.01, -0.01, 0.004])
    assert named[1][1].tolist() == [1.0]


def test_critic_and_trunk_bring_two_domains_together():
    """The trunk is one shift of the target domain. Without labels it learns to remove the gap, around which the two
    players then circle."""
    draw = torch.Generator().manual_seed(0)
    critic, shift, path = Critic(2, hidden=16, weight=1.0), torch.zeros(2, requires_grad=True), []
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    source, target = torch.randn(100, 2, generator=draw), torch.randn(100, 2, generator=draw) + 3
    climb, descend = torch.optim.RMSprop(critic.parameters(), lr=2e-3), torch.optim.SGD([shift], lr=10.0)
    is_source = torch.arange(200)[None] < 100
    for _ in range(200):
        values = critic(torch.cat((source, target + shift)))[:, 0][None]
        climb.zero_grad()
        descend.zero_grad()
        (-domain_distance(values, is_source, ~is_source)).backward()
        climb.step()
        descend.step()
        with torch.no_grad():
            clip_critic(((f"head.critic.{name}", p) for name, p in critic.named_parameters()), 0.1)
        path.append(shift.detach().clone())
    gap = target.mean(0) - source.mean(0)
    assert torch.allclose(torch.stack(path)[100:].mean(0), -gap, atol=0.3)


def test_ignored_positions_are_of_no_domain():
    head, trunk, texts, states = head_and_texts()
    loss = ClassifierLoss(("H",), (1.0,), (-1,), adversarial=True)
    outputs = head((texts @ trunk)[None])
    padded = torch.cat((outputs, 9 + outputs), dim=1)
    targets = torch.cat((states[None], torch.full_like(states[None], IGNORE)), dim=1)
    found = [
        loss(out, Batch(torch.zeros(out.shape[:2], dtype=torch.int64), t))
        for out, t in ((outputs, states[None]), (padded, targets))
    ]
    assert found[0].sum.item() == pytest.approx(found[1].sum.item(), abs=1e-12)

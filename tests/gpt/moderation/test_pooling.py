"""The outputs of a text: attention by the formula of frozen heads, and padded rows as packed ones."""

import pytest
import torch

from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.moderation.frozen.attention_pooling import PooledHeads
from gpt.moderation.heads import CategoryHead
from gpt.moderation.loss import ClassifierLoss
from gpt.moderation.pooling import AttentionOverText, LastToken, MeanOverText, pooling_of
from gpt.moderation.wdat import Critic

D, Q, C = 6, 4, 3
LENGTHS = torch.tensor([7, 1, 4])
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS.tolist()]).unsqueeze(0)  # one row with all texts
KEPT = (torch.arange(7) < LENGTHS.unsqueeze(1)).long()  # (3, 7), padded


def padded(row):
    """(3, 7, ...) from (1, 12, ...); padding has large numbers."""
    found = torch.full((3, 7, *row.shape[2:]), 1e6)
    found[KEPT.bool()] = row[0]
    return found


def test_a_linear_head_with_queries_is_the_formula_of_frozen_heads():
    """Tolerance 1e-5 in fp32."""
    draw = torch.Generator().manual_seed(0)
    frozen = PooledHeads(torch.zeros(D), torch.ones(D), Q, C, draw)
    head = CategoryHead(D, C, kind="linear", n_queries=Q)
    with torch.no_grad():
        for one in (frozen.query, frozen.value, frozen.bias):
            one.copy_(torch.randn(one.shape, generator=draw))
        head.query.weight.copy_(frozen.query)
        head.values.weight.copy_(frozen.value.transpose(1, 2).reshape(Q * C, D))
        head.values.bias.copy_((frozen.bias / Q).repeat(Q))
    states = torch.randn(1, 12, D, generator=draw)
    loss = ClassifierLoss(("A", "B", "C"), (1.0,) * C, (-1,) * C, pooling=AttentionOverText(Q, C))
    batch = Batch(torch.zeros(1, 12, dtype=torch.int64), torch.full((1, 12, C), IGNORE), positions=POSITIONS)
    found = loss.values(head(states), batch)[0, LENGTHS.cumsum(0) - 1]
    torch.testing.assert_close(found, frozen(padded(states), LENGTHS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "width"), [(LastToken(), C), (MeanOverText(), C), (AttentionOverText(Q, C), Q * (1 + C) + 1)]
)
def test_padded_rows_have_the_outputs_of_packed_ones(pooling, width):
    outputs = torch.randn(1, 12, width, generator=torch.Generator().manual_seed(1))
    packed = pooling(outputs, POSITIONS)[0, LENGTHS.cumsum(0) - 1]
    torch.testing.assert_close(pooling.of_rows(padded(outputs), KEPT), packed, rtol=1e-6, atol=1e-6)
    assert pooling.needs_whole_text == (pooling != LastToken())


def test_the_value_of_a_critic_is_the_mean_over_the_text():
    head = CategoryHead(D, C, kind="linear", n_queries=Q, critic=Critic(D, hidden=5, weight=1.0))
    states = torch.randn(1, 12, D, generator=torch.Generator().manual_seed(2))
    outputs = head(states)
    assert outputs.shape[-1] == Q + Q * C + 1
    found = AttentionOverText(Q, C)(outputs, POSITIONS)
    assert found.shape[-1] == C + 1
    assert torch.equal(found[..., -1:], MeanOverText()(head.critic(states), POSITIONS))


def test_each_kind_has_its_pooling():
    kinds = {kind: pooling_of(kind, n_queries=Q, n_categories=C) for kind in ("last", "mean", "attention")}
    assert kinds == {"last": LastToken(), "mean": MeanOverText(), "attention": AttentionOverText(Q, C)}

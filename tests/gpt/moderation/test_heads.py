"""Heads against a loop over categories, and the maximum over children against a search of descendants."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from gpt.model.config import ModelConfig
from gpt.model.dropout import BlockDropout, position_keys, row_keys
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.moderation.heads import CategoryHead, constrained

D, C, H = 6, 4, 5
PARENTS = (-1, 0, 1, -1)  # 2 is a child of 1, and 1 of 0


def filled(head, seed=0):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return head


def hidden(seed=1):
    return torch.randn(2, 3, D, generator=torch.Generator().manual_seed(seed))


def test_one_mlp_a_category_equals_a_loop_over_mlps():
    head, x = filled(CategoryHead(D, C, kind="mlp", hidden=H)), hidden()
    for i in range(C):
        rows = slice(i * H, (i + 1) * H)
        up = functional.linear(x, head.up.weight[rows], head.up.bias[rows])
        expected = functional.gelu(up, approximate="tanh") @ head.down.weight[i] + head.down.bias[i]
        assert torch.allclose(head(x)[..., i], expected, atol=1e-6)


def test_queries_have_scores_and_values_of_their_own():
    """Each query's values are those of a head of its own, of any kind; dropout leaves the scores alone."""
    n, x = 3, hidden()
    keys = position_keys(torch.from_numpy(row_keys(3, np.arange(2))), length=3)
    for kind in ("mlp", "shared_mlp", "linear"):
        head = filled(CategoryHead(D, C, kind=kind, hidden=H, n_queries=n, dropout=0.5))
        found = head(x)
        assert found.shape[-1] == n + n * C
        assert torch.equal(found[..., :n], functional.linear(x, head.query.weight))
        last = head.values if kind == "linear" else head.down
        for i in range(n):
            alone, rows = CategoryHead(D, C, kind=kind, hidden=H), slice(i * C, (i + 1) * C)
            own = alone.classes if kind == "linear" else alone.down
            with torch.no_grad():
                own.weight.copy_(last.weight[rows])
                own.bias.copy_(last.bias[rows])
                if kind != "linear":
                    alone.up.load_state_dict(head.up.state_dict())
            torch.testing.assert_close(found[..., n + i * C : n + (i + 1) * C], alone(x))
        dropped = head(x, BlockDropout(keys, 0.5))
        assert torch.equal(dropped[..., :n], found[..., :n])
        assert not torch.allclose(dropped[..., n:], found[..., n:])


def test_attention_starts_near_the_plain_mean_on_any_width():
    """Scores of states of size 1 have a deviation of 0.5, and linear values are 0."""
    for width in (64, 256):
        model = GPT(ModelConfig(vocab_size=8, n_ctx=8, n_layers=1, d_model=width, n_heads=2), head=None, last=False)
        model.head = CategoryHead(width, C, kind="linear", n_queries=200)
        initialise(model, model.config, seed=0)
        scores = model.head(torch.ones(1, 1, width))[..., :200]
        assert scores.std().item() == pytest.approx(0.5, rel=0.15)
        assert not model.head.values.weight.any()


def test_a_shared_mlp_and_a_linear_head_are_the_usual_layers():
    x = hidden()
    shared = filled(CategoryHead(D, C, kind="shared_mlp", hidden=H))
    assert torch.allclose(shared(x), shared.down(functional.gelu(shared.up(x), approximate="tanh")), atol=1e-6)
    linear = filled(CategoryHead(D, C, kind="linear"))
    assert torch.allclose(linear(x), x @ linear.classes.weight.T + linear.classes.bias, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "shared_mlp", "linear"])
def test_logits_are_fp32_and_dropout_drops_the_share_that_it_should(kind):
    head = filled(CategoryHead(D, C, kind=kind, hidden=H, dropout=0.5)).bfloat16()
    x = hidden().bfloat16()
    assert head(x).dtype == torch.float32
    keys = position_keys(torch.from_numpy(row_keys(3, np.arange(2))), length=3)
    dropped, again = (head(x, BlockDropout(keys, 0.5)) for _ in range(2))
    assert torch.equal(dropped, again)
    assert not torch.allclose(dropped, head(x))
    wide = CategoryHead(D, 1, kind="mlp", hidden=20_000, dropout=0.25)
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.fill_(0)
        wide.up.bias.fill_(10)  # GELU(10) = 10
        wide.down.weight.fill_(1 / 20_000 / 10)
    assert wide(x.float(), BlockDropout(keys, 0.25)).mean().item() == pytest.approx(1.0, abs=0.01)
    assert wide(x.float()).mean().item() == pytest.approx(1.0, abs=1e-5)


def test_a_parent_has_at_least_the_logit_of_each_descendant():
    logits = torch.randn(50, C, generator=torch.Generator().manual_seed(2))
    found = constrained(logits, PARENTS)
    assert torch.equal(found[:, 0], logits[:, :3].amax(1))
    assert torch.equal(found[:, 1], logits[:, 1:3].amax(1))
    assert torch.equal(found[:, 2:], logits[:, 2:])


def test_a_child_whose_label_is_unknown_learns_nothing_and_its_parent_learns():
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.0]], requires_grad=True)
    known = torch.tensor([[True, False, False, True]])
    (gradient,) = torch.autograd.grad(constrained(logits, PARENTS, known)[..., 0].sum(), logits)
    assert gradient.tolist() == [[1, 0, 0, 0]]
    known[0, 2] = True  # a grandchild
    found = constrained(logits, PARENTS, known)
    assert found.tolist() == [[2, 1, 2, 0]]
    (gradient,) = torch.autograd.grad(found[..., 0].sum(), logits)
    assert gradient.tolist() == [[0, 0, 1, 0]]
    (gradient,) = torch.autograd.grad(constrained(logits, PARENTS, torch.ones_like(known))[..., 0].sum(), logits)
    assert gradient.tolist() == [[0, 0, 1, 0]]

"""The approximate logits of left-out texts are near those of fits without each, and choose the same penalty."""

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.moderation.frozen.leave_one_out import choose_l2, left_out_logits
from gpt.moderation.frozen.linear_heads import columns, fit_heads, minimum

N, D = 60, 12


def drawn(noise, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(N, D))
    label = (x @ draw.normal(size=D) * 2 + noise * draw.logistic(size=N) > 0).astype(np.float64)
    return x, label


@pytest.mark.parametrize(("l2", "positive"), [(1.0, 1.0), (5.0, 3.0), (100.0, 1.0)])
def test_logits_of_left_out_texts_are_those_of_fits_without_them(l2, positive):
    x, label = drawn(2.0)
    x, sign, weight = np.column_stack((x, np.ones(N))), 2 * label - 1, np.where(label, positive, 1.0)
    head = minimum(x, sign, weight, l2)
    exact = np.empty(N)
    for i in range(N):
        others = np.arange(N) != i
        exact[i] = x[i] @ minimum(x[others], sign[others], weight[others], l2)
    found = left_out_logits(head, x, sign, weight, l2)
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact - x @ head).max()


def test_each_category_gets_the_penalty_with_the_least_exact_loss():
    features, noisy = drawn(30.0)
    _, clean = drawn(0.01)
    labels, candidates = np.column_stack((noisy, clean)), (0.1, 1.0, 10.0, 100.0, 1000.0)
    labels[:5, 0] = np.nan
    x, _ = columns(features, standardise=True)
    expected = {}
    for name, column in zip("AB", labels.T, strict=True):
        known = np.flatnonzero(~np.isnan(column))
        sign, losses = 2 * column - 1, {}
        for l2 in candidates:
            logits = [
                x[i] @ minimum(x[known[known != i]], sign[known[known != i]], np.ones(len(known) - 1), l2)
                for i in known
            ]
            losses[l2] = np.logaddexp(0, -sign[known] * np.array(logits)).sum()
        expected[name] = min(losses, key=losses.get)
    found = choose_l2(features, labels, "AB", candidates=candidates)
    assert found == expected
    assert found["A"] > found["B"]  # noisy labels need a larger penalty
    both = fit_heads(features, labels, "AB", l2=found, standardise=True)
    for i, name in enumerate("AB"):
        alone = fit_heads(features, labels[:, [i]], name, l2=found[name], standardise=True)
        assert np.allclose(both.weight[i], alone.weight[0], rtol=0, atol=1e-12)


def test_a_single_positive_text_and_bad_candidates():
    features, label = drawn(1.0)
    label[:] = 0
    label[7] = 1
    assert choose_l2(features, label[:, None], "A", candidates=[1.0, 50.0, 5.0]) == {"A": 50.0}
    with pytest.raises(ConfigError, match="category 'A' has no positive label"):
        choose_l2(features, np.zeros((N, 1)), "A")
    with pytest.raises(ConfigError, match=r"l2 = -1 is invalid"):
        choose_l2(features, label[:, None], "A", candidates=[-1.0])
    with pytest.raises(ConfigError, match="candidates of l2 are empty"):
        choose_l2(features, label[:, None], "A", candidates=[])


def test_a_candidate_that_fits_no_head_is_left_out():
    """Two equal columns: the Hessian is singular, except for the rounding, where the penalty is small."""
    features, label = drawn(0.0, seed=1)
    features[:, 3] = features[:, 2]
    features, column = features * 1e8, label[:, None]
    with pytest.raises(ConfigError, match="no head fits the features"):
        fit_heads(features, column, "A", l2=1.0)
    with pytest.raises(ConfigError, match=r"no head fits the features.*larger l2 than 1$"):
        choose_l2(features, column, "A", candidates=[0.001, 1.0], standardise=False)
    found = choose_l2(features, column, "A", candidates=[1.0, 1e10, 1e14], standardise=False)
    assert found["A"] in (1e10, 1e14)
    assert np.isfinite(fit_heads(features, column, "A", l2=found).weight).all()

"""Heads on frozen features equal scikit-learn's LogisticRegression within 1e-6, each category on its known labels."""

import numpy as np
import pytest
import torch

from gpt.errors import ConfigError
from gpt.moderation.frozen.linear_heads import fit_heads

N, D, IDS = 300, 40, ("A", "B", "C")


def drawn(scale=1.0, seed=0):
    """Features of a hidden state's kind, with a few large channels, and labels: 1, 0, and NaN for a fifth of them."""
    draw = np.random.default_rng(seed)
    features = (draw.normal(size=(N, D)) * np.exp(draw.normal(size=D)) * scale).astype(np.float32)
    logits = features @ draw.normal(size=(D, 3)) / scale + np.array([0, -3, 2])
    labels = (logits + draw.logistic(size=(N, 3)) > 0).astype(np.float64)
    labels[draw.random((N, 3)) < 0.2] = np.nan
    return features, labels


@pytest.mark.parametrize(("l2", "scale", "weights"), [(1.0, 1.0, {}), (0.1, 3.0, {"B": 4.0}), (30.0, 0.5, {})])
def test_each_head_equals_scikit_learns(l2, scale, weights):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = drawn(scale)
    found = fit_heads(features, labels, IDS, l2=l2, class_weights=weights)
    for i, category in enumerate(IDS):
        known = ~np.isnan(labels[:, i])
        theirs = linear_model.LogisticRegression(
            C=1 / l2, solver="newton-cholesky", tol=1e-12, max_iter=500, class_weight={1: weights.get(category, 1.0)}
        )
        theirs.fit(features[known].astype(np.float64), labels[known, i])
        assert np.abs(found.weight[i] - theirs.coef_[0]).max() < 1e-6
        assert abs(found.bias[i] - theirs.intercept_[0]) < 1e-6
        expected = theirs.decision_function(features.astype(np.float64))
        assert np.abs(found.logits(features)[:, i] - expected).max() < 1e-6
        assert found.n_known[i] == known.sum()


def test_unknown_labels_of_other_texts_change_nothing():
    features, labels = drawn()
    more = np.vstack([features, 50 + features[:20]])
    unknown = np.vstack([labels, np.full((20, 3), np.nan)])
    first, second = fit_heads(features, labels, IDS), fit_heads(more, unknown, IDS)
    assert np.abs(first.weight - second.weight).max() < 1e-9


def test_what_cannot_be_fitted_is_refused():
    features, labels = drawn()
    labels[:, 1] = np.where(np.isnan(labels[:, 1]), np.nan, 0)
    with pytest.raises(ConfigError, match="category 'B' has no positive label in 300 texts, so no head can be fitted"):
        fit_heads(features, labels, IDS)
    with pytest.raises(ConfigError, match=r"l2 = 0 is invalid: must be a number above 0\. Use 1"):
        fit_heads(features, labels, IDS, l2=0.0)
    features[3, 2] = np.inf
    with pytest.raises(ConfigError, match="category 'A': no head fits the features"):
        fit_heads(features, labels[:, :1], IDS[:1])


@pytest.mark.parametrize("n", [25, 300])
def test_standardised_features_equal_scikit_learns_pipeline(n):
    """Also with fewer texts than features. The heads take the features as they are."""
    linear_model, preprocessing = (pytest.importorskip(f"sklearn.{name}") for name in ("linear_model", "preprocessing"))
    features, labels = drawn(5.0)
    features, label = features[:n] + 3, np.nan_to_num(labels[:n, :1])
    scaled = preprocessing.StandardScaler().fit_transform(features.astype(np.float64))
    theirs = linear_model.LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-12, max_iter=500)
    theirs.fit(scaled, label[:, 0])
    found = fit_heads(features, label, IDS[:1], l2=10.0, standardise=True)
    assert found.weight.shape == (1, D)
    assert np.abs(found.logits(features)[:, 0] - theirs.decision_function(scaled)).max() < 1e-6


def test_the_head_of_one_category_can_be_saved():
    """Safetensors views a tensor as bytes, which needs a last stride of 1; a slice of one row keeps a longer one."""
    features, labels = drawn()
    found = fit_heads(features, labels[:, :1], IDS[:1])
    for array in (found.weight, found.bias):
        assert torch.from_numpy(array).to(torch.float32).view(torch.uint8).numel() == 4 * array.size

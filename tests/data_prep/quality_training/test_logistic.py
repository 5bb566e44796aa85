"""The regression agrees with scikit-learn's."""

import numpy as np
import pytest

from data_prep.quality_training.logistic import Examples, deviations, fit, margins, sigmoid

N_FEATURES = 1000  # fewer than the real 2^18, to be quick


def bags(n: int, seed: int) -> tuple[Examples, np.ndarray]:
    """n rows of counts of about 300 buckets; many buckets together separate the classes."""
    rng = np.random.default_rng(seed)
    names = np.sort(rng.choice(N_FEATURES, 300, replace=False))
    positive = rng.random(n) < 0.4
    lean = rng.normal(size=300)
    rows = []
    for label in positive:
        p = np.exp(np.log(np.arange(1, 301)[::-1]) + (0.4 if label else -0.4) * lean)
        rows.append(np.unique(rng.choice(names, size=rng.integers(5, 80), p=p / p.sum()), return_counts=True))
    stops = np.cumsum([len(buckets) for buckets, _ in rows])
    buckets, counts = (np.concatenate(part).astype(np.int32) for part in zip(*rows, strict=True))
    return Examples(np.concatenate([[0], stops[:-1]]), stops, buckets, counts), positive


@pytest.mark.parametrize("standardize", [False, True])
def test_the_regression_matches_scikit_learn(monkeypatch, standardize):
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    sparse = pytest.importorskip("scipy.sparse")
    monkeypatch.setattr("data_prep.quality_training.logistic._BLOCK", 997)  # many blocks, cut anywhere
    examples, positive = bags(400, 0)
    weights = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())
    weights[::7] = 0  # like held-out rows
    weights /= weights.sum()
    settings = {"n_features": N_FEATURES, "l2": 1e-2, "max_iterations": 2000, "tolerance": 1e-10}
    found = fit(examples, positive, weights, standardize=standardize, **settings)
    assert found.converged
    counts = sparse.csr_matrix(
        (examples.counts.astype(float), examples.buckets, [0, *examples.stops]), shape=(400, N_FEATURES)
    )
    scale = np.ones(N_FEATURES)
    if standardize:
        mean = weights @ counts
        spread = np.sqrt(np.maximum(weights @ counts.power(2) - mean**2, 0))
        np.testing.assert_allclose(deviations(examples, weights, N_FEATURES), spread, atol=1e-12)
        scale = np.divide(1, spread, out=np.zeros(N_FEATURES), where=spread > 0)
    used = np.unique(examples.buckets)
    reference = linear.LogisticRegression(C=1 / 1e-2, solver="newton-cholesky", tol=1e-12, max_iter=500)
    reference.fit((counts @ sparse.diags(scale))[:, used], positive, sample_weight=weights)
    expected = reference.predict_proba((counts @ sparse.diags(scale))[:, used])[:, 1]
    np.testing.assert_allclose(sigmoid(margins(examples, found.weights, found.bias)), expected, atol=1e-6)

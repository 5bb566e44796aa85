"""Measures equal scikit-learn's on random data, ties and unknown labels included."""

import math

import numpy as np
import pytest

from gpt.moderation.measures.ranking import (
    any_label,
    auroc,
    average_precision,
    confusion,
    f1,
    precision_recall_curve,
)

metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


def random_case(seed):
    """Labels with unknown ones, scores with many ties, and weights."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 400))
    labels = rng.choice([0.0, 1.0, np.nan], p=[0.6, 0.2, 0.2], size=n)
    labels[:2] = 0, 1
    scores = rng.random(n) if seed % 2 else np.round(rng.random(n), 1)
    return labels, scores, rng.integers(0, 4, size=n).astype(float)


@pytest.mark.parametrize("seed", range(30))
def test_equals_scikit_learn(seed):
    labels, scores, weights = random_case(seed)
    weights[:2] = 1
    kept = ~np.isnan(labels)
    y, p, w = labels[kept], scores[kept], weights[kept]
    close = {"rel": 0, "abs": 1e-12}
    assert average_precision(labels, scores) == pytest.approx(metrics.average_precision_score(y, p), **close)
    assert auroc(labels, scores) == pytest.approx(metrics.roc_auc_score(y, p), **close)
    assert f1(labels, scores, 0.4) == pytest.approx(metrics.f1_score(y, p >= 0.4), **close)
    weighted = average_precision(labels, scores, weights)
    assert weighted == pytest.approx(metrics.average_precision_score(y, p, sample_weight=w), **close)
    weighted = auroc(labels, scores, weights)
    assert weighted == pytest.approx(metrics.roc_auc_score(y, p, sample_weight=w), **close)
    assert f1(labels, scores, 0.4, weights) == pytest.approx(metrics.f1_score(y, p >= 0.4, sample_weight=w), **close)
    counts = confusion(labels, scores, 0.4)
    expected = metrics.confusion_matrix(y, p >= 0.4).ravel().tolist()  # tn, fp, fn, tp
    assert expected == [
        counts.true_negatives,
        counts.false_positives,
        counts.false_negatives,
        counts.true_positives,
    ]


def test_the_curve_has_one_point_for_each_distinct_score():
    labels, scores, _ = random_case(4)
    kept = ~np.isnan(labels)
    precision, recall, thresholds = metrics.precision_recall_curve(labels[kept], scores[kept])
    curve = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(curve.thresholds, thresholds[::-1], atol=0)
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1], atol=1e-12)
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1], atol=1e-12)


def test_a_measure_that_the_labels_do_not_define_is_nan():
    assert math.isnan(average_precision([0, 0, np.nan], [0.1, 0.2, 0.3]))
    assert math.isnan(auroc([1, 1], [0.1, 0.2]))
    assert math.isnan(auroc([], []))
    assert math.isnan(f1([0, 0], [0.1, 0.2]))
    assert f1([1, 0], [0.1, 0.2]) == 0


def test_the_score_of_an_unknown_label_has_no_effect():
    assert average_precision([1, 0, np.nan], [0.5, 0.4, np.nan]) == 1


@pytest.mark.parametrize(
    ("labels", "scores", "rule"),
    [([1, 2], [0.1, 0.2], "0, 1 or NaN"), ([1, 0], [0.1, np.inf], "infinite"), ([1], [0.1, 0.2], "shapes")],
)
def test_refuses_impossible_input(labels, scores, rule):
    with pytest.raises(ValueError, match=rule):
        average_precision(labels, scores)


def test_any_label_is_positive_with_one_positive_and_unknown_without_a_known_one():
    found = any_label([[1, np.nan], [0, np.nan], [0, 0], [np.nan, np.nan]])
    np.testing.assert_array_equal(found, [1, 0, 0, np.nan])

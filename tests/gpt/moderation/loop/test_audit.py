"""The audit's sample and F1 against an auditor."""

import math

import numpy as np
import pytest

from gpt.moderation.loop.audit import audit_sample, category_audits


def test_the_sample_has_labelled_positives_and_other_texts_with_a_high_score():
    rng = np.random.default_rng(0)
    ids = [f"t{i}" for i in range(400)]
    labels = (rng.random((400, 2)) < 0.1).astype(float)
    labels[:5, 1] = np.nan
    scores = rng.random((400, 2))
    found = audit_sample(ids, labels, scores, ["A", "B"], seed=1)
    assert len(found) == len({one.id for one in found}) == 40
    row = {name: i for i, name in enumerate(ids)}
    for one in found:
        reason, category = one.reason.split(":")
        column = "AB".index(category)
        label, score = labels[row[one.id], column], scores[row[one.id], column]
        assert label == 1 if reason == "labelled" else (score > 0.5 and label != 1)
    order = rng.permutation(400)
    again = audit_sample([ids[i] for i in order], labels[order], scores[order], ["A", "B"], seed=1)
    assert again == found
    assert len(audit_sample(ids, labels, None, ["A", "B"])) == 20


def test_f1_is_that_of_the_labels_with_the_auditor_as_truth():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(2)
    audited = (rng.random((60, 1)) < 0.5).astype(float)
    labels = np.where(rng.random((60, 1)) < 0.2, 1 - audited, audited)
    labels[0], audited[1] = np.nan, np.nan
    (found,) = category_audits(labels, audited, ["A"])
    y, given = audited[2:, 0], labels[2:, 0]
    assert found.audited == 58
    assert found.f1.estimate == pytest.approx(metrics.f1_score(y, given), abs=1e-12)
    assert found.precision.estimate == pytest.approx(metrics.precision_score(y, given), abs=1e-12)
    assert found.recall.estimate == pytest.approx(metrics.recall_score(y, given), abs=1e-12)
    assert found.f1.low < found.f1.estimate < found.f1.high


def test_few_positives_have_no_bootstrap_interval_and_nothing_audited_is_nan():
    (found,) = category_audits(np.array([[1.0], [0.0]]), np.array([[1.0], [0.0]]), ["A"])
    assert found.f1.estimate == 1
    assert math.isnan(found.f1.low)
    (found,) = category_audits(np.array([[np.nan]]), np.array([[1.0]]), ["A"])
    assert found.audited == 0
    assert math.isnan(found.f1.estimate)
    with pytest.raises(ValueError, match="1 categories"):
        category_audits(np.zeros((1, 2)), np.zeros((1, 2)), ["A"])

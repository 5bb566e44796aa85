"""Planted label errors are found; confident learning equals its definition; the 30% rule."""

import numpy as np
import pytest

from gpt.moderation.loop.label_errors import (
    confident_errors,
    disagreements,
    fold_of,
    most_suspicious,
    relabel_verdict,
    suspicion,
)


def test_planted_errors_are_the_most_suspicious_labels():
    rng = np.random.default_rng(0)
    truth = (rng.random(1_000) < 0.3).astype(float)
    scores = np.clip(truth * 0.8 + rng.normal(0.1, 0.1, 1_000), 0, 1)
    labels = truth.copy()
    planted = rng.choice(1_000, 50, replace=False)
    labels[planted] = 1 - labels[planted]
    assert set(most_suspicious(labels, scores, 0.05)) == set(planted)
    found = set(np.flatnonzero(confident_errors(labels, scores)))
    assert found <= set(planted)
    assert len(found) > 25  # it wants a probability above the mean of a class, so it leaves some out
    assert set(np.flatnonzero(disagreements(labels, scores))) >= set(planted)


@pytest.mark.parametrize("seed", range(5))
def test_confident_learning_equals_its_definition_for_two_classes(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0.0, 1.0, np.nan], size=300)
    scores = rng.beta(0.7, 1.5, size=300)
    p = np.stack([1 - scores, scores], axis=1)
    limits = [p[labels == k, k].mean() for k in (0, 1)]
    expected = []
    for label, row in zip(labels, p, strict=True):
        confident = [k for k in (0, 1) if row[k] >= limits[k] - 1e-6]
        best = max(confident, key=lambda k: row[k]) if confident else None
        expected.append(not np.isnan(label) and best is not None and best != label and row.argmax() != label)
    np.testing.assert_array_equal(confident_errors(labels, scores), expected)


def test_unknown_labels_are_never_flagged_and_one_class_flags_nothing():
    labels, scores = np.array([np.nan, 0.0, 0.0]), np.array([0.9, 0.9, 0.1])
    assert disagreements(labels, scores).tolist() == [False, True, False]
    assert not confident_errors(labels, scores).any()
    assert most_suspicious(labels, scores, 1.0).tolist() == [1, 2]
    assert np.isnan(suspicion(labels, scores)[0])


def test_a_fold_is_a_function_of_the_id_and_the_seed():
    ids = [f"t{i}" for i in range(2_000)]
    folds = fold_of(ids, folds=2, seed=3)
    assert folds.mean() == pytest.approx(0.5, abs=0.04)
    assert fold_of(ids[500:], folds=2, seed=3).tolist() == folds[500:].tolist()
    assert (fold_of(ids, folds=2, seed=4) != folds).any()


def test_everything_is_labelled_again_above_30_percent():
    labels, audited = np.zeros(11), np.array([1.0] * 3 + [0.0] * 7 + [np.nan])
    verdict = relabel_verdict(labels, audited)
    assert (verdict.checked, verdict.wrong, verdict.relabel_all) == (10, 3, False)
    audited[3] = 1
    assert relabel_verdict(labels, audited).relabel_all
    assert not relabel_verdict([np.nan], [1.0]).relabel_all

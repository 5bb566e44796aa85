"""The rows of a report: figures of each column alone, with the intervals that its positives permit."""

import math

import numpy as np
import pytest

from gpt.moderation.measures.ranking import average_precision, f1
from gpt.moderation.measures.summary import category_measures


def test_measures_each_category_with_its_own_threshold():
    rng = np.random.default_rng(0)
    scores = rng.random((300, 2))
    labels = (rng.random((300, 2)) < scores).astype(float)
    labels[:50, 1] = np.nan
    first, second = category_measures(labels, scores, ["A", "B"], thresholds=[0.3, 0.6], resamples=50)
    assert (first.known, second.known) == (300, 250)
    assert second.positives == np.nansum(labels[:, 1])
    assert first.auprc.estimate == average_precision(labels[:, 0], scores[:, 0])
    assert second.f1.estimate == f1(labels[:, 1], scores[:, 1], 0.6)
    assert first.auprc.low < first.auprc.estimate < first.auprc.high
    assert second.recall.low < second.confusion.recall < second.recall.high


def test_a_rare_class_has_exact_intervals_only():
    labels = np.zeros((50, 1))
    labels[:3] = 1
    scores = np.linspace(1, 0, 50)[:, None]
    (found,) = category_measures(labels, scores, ["A"], resamples=20)
    assert found.auprc.estimate == 1
    assert math.isnan(found.auprc.low)
    assert (found.recall.low, found.recall.high) == (pytest.approx(0.2924, abs=1e-4), 1)


def test_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="1 categories"):
        category_measures(np.zeros((3, 2)), np.zeros((3, 2)), ["A"])

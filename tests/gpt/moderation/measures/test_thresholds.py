"""Thresholds equal an exhaustive search."""

import numpy as np
import pytest

from gpt.moderation.measures.intervals import exact_interval
from gpt.moderation.measures.ranking import confusion
from gpt.moderation.measures.thresholds import choose_threshold


def random_case(seed):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random(60), 2)
    labels = (rng.random(60) < scores).astype(float)
    labels[rng.random(60) < 0.1] = np.nan
    return labels, scores


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sure", [False, True])
def test_equals_an_exhaustive_search(seed, sure):
    labels, scores = random_case(seed)
    counts = {t: confusion(labels, scores, t) for t in np.unique(scores[~np.isnan(labels)])}

    def share(hits, misses):
        return exact_interval(int(hits), int(hits + misses)).low if sure else hits / (hits + misses)

    precise = [t for t, c in counts.items() if share(c.true_positives, c.false_positives) >= 0.5]
    complete = [t for t, c in counts.items() if share(c.true_positives, c.false_negatives) >= 0.6]
    found = choose_threshold(labels, scores, "precision", 0.5, sure=sure)
    if precise:
        assert counts[found.threshold].recall == max(counts[t].recall for t in precise)
        assert found.threshold in precise
    else:
        assert found is None
    found = choose_threshold(labels, scores, "recall", 0.6, sure=sure)
    assert found.threshold in complete
    best = counts[found.threshold]
    assert best.precision == max(counts[t].precision for t in complete)
    assert found.precision.estimate == pytest.approx(best.precision)
    assert found.recall.estimate == pytest.approx(best.recall)
    assert found.flagged == best.true_positives + best.false_positives
    assert found.wanted == "recall 0.6"


def test_none_if_no_threshold_reaches_it_or_no_positive_is_known():
    assert choose_threshold([1, 0, 0], [0.1, 0.8, 0.9], "precision", 0.9) is None
    assert choose_threshold([0, np.nan], [0.1, 0.8], "recall", 0.5) is None

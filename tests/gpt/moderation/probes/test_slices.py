"""Slices measure the texts of each group by themselves."""

import numpy as np

from gpt.moderation.measures.ranking import average_precision
from gpt.moderation.probes.slices import length_groups, slice_measures


def test_measures_each_group():
    rng = np.random.default_rng(0)
    scores = rng.random((100, 1))
    labels = (rng.random((100, 1)) < scores).astype(float)
    language = ["en"] * 60 + ["de"] * 25 + ["fr"] * 5 + ["it"] * 6 + [""] * 4
    found = slice_measures(labels, scores, ["A"], {"language": language}, resamples=10)
    assert [(one.field, one.value, one.texts) for one in found] == [
        ("language", "en", 60),
        ("language", "de", 25),
        ("language", "(others)", 11),
    ]
    assert found[1].measures[0].auprc.estimate == average_precision(labels[60:85, 0], scores[60:85, 0])


def test_lengths_are_counted_in_characters():
    texts = ["", "a" * 49, "a" * 50, "a" * 199, "a" * 200, "a" * 5_000]
    assert length_groups(texts) == ["0-49", "0-49", "50-199", "50-199", "200-999", "1000+"]

"""Probes on files: groups that no text has are refused; texts below the limit are not reduced."""

import numpy as np
import pytest
from moderation_files import write_taxonomy

from gpt.errors import ConfigError
from gpt.moderation.labels import LabelledText
from gpt.moderation.taxonomy import read_taxonomy
from launch.moderation.loop.probing import probe_reduction, probe_slices
from launch.moderation.loop.scorer import NamedScorer


@pytest.fixture
def scorer(tmp_path):
    def score(texts):
        return np.array([[0.9 if "boat" in text else 0.1, 0.2] for text in texts])

    return NamedScorer(score, "v1", read_taxonomy(write_taxonomy(tmp_path)), {"B": 0.1})


def test_a_group_that_no_text_has_is_refused(scorer):
    assert scorer.threshold_list == [0.5, 0.1]
    with pytest.raises(ConfigError, match="no text has a group of this name"):
        probe_slices(scorer, [LabelledText("a", "boat", {"A": True})], ["language"], resamples=5)


def test_texts_below_the_limit_are_not_reduced(scorer):
    texts = [LabelledText("a", "car", {}), LabelledText("b", "one boat", {})]
    summary, found = probe_reduction(scorer, texts, "A", limit=0.8, most=5)
    assert summary["texts"] == 1
    assert [(text.id, one.text) for text, one in found] == [("b", "boat")]

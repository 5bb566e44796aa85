"""Documents with a high score are dropped and counted; the model is a function from outside."""

import numpy as np
import pytest

from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import read_trace
from data_prep.filters.moderation import ModerationConfig, check_moderation, filter_shard
from gpt.errors import ConfigError


def score(texts):
    """The share of the letters a and b, and a fault for one text."""
    if any("fault" in text for text in texts):
        raise ValueError("fault")
    return np.array([[text.count(letter) / len(text) for letter in "ab"] for text in texts])


def test_documents_over_a_limit_are_dropped_by_category(tmp_path):
    inputs, outputs = (tmp_path / "in.zst",), (tmp_path / "out.zst", tmp_path / "trace.zst")
    texts = ["aaab", "bbbx", "xyz", "a fault", "ab"]
    with write_shard(inputs[0]) as write:
        for number, text in enumerate(texts):
            write(Document(f"d{number}", text, {"kept": True}))
    rule = ModerationConfig(run=tmp_path, drop={"A": 0.7, "B": 0.75}).rule
    result = filter_shard(rule, inputs, outputs, categories=("A", "B"), score=score)
    kept = list(read_shard(outputs[0]))
    assert [one.id for one in kept] == ["d2", "d4"]
    assert kept[1].metadata == {"kept": True, "moderation": {"A": 0.5, "B": 0.5}}
    assert result.counts[0].dropped == {"score_A": 1, "score_B": 1, "quarantined": 1}
    drops = {drop.id: (drop.reason, drop.detail) for drop in read_trace(outputs[1])}
    assert drops["d0"] == ("score_A", "score 0.75")
    assert result.facts["category_scores"]["A"]["0.00"] == 2
    assert sum(result.facts["category_scores"]["B"].values()) == 4


def test_a_document_whose_score_is_not_a_number_is_set_aside(tmp_path):
    inputs, outputs = (tmp_path / "in.zst",), (tmp_path / "out.zst", tmp_path / "trace.zst")
    with write_shard(inputs[0]) as write:
        for number, text in enumerate(["aab", "overflow", "abb"]):
            write(Document(f"d{number}", text, {}))

    def unstable(texts):
        return np.array([[np.nan if text == "overflow" else 0.5] for text in texts])

    rule = ModerationConfig(run=tmp_path, drop={"A": 0.7}).rule
    result = filter_shard(rule, inputs, outputs, categories=("A",), score=unstable)
    assert [one.id for one in read_shard(outputs[0])] == ["d0", "d2"]
    assert result.counts[0].dropped == {"quarantined": 1}


@pytest.mark.parametrize("drop", [{"A": 0.0}, {"A": 1.5}, {"A": True}])
def test_limits_are_probabilities(drop, tmp_path):
    with pytest.raises(ConfigError, match="must be above 0 and at most 1"):
        ModerationConfig(run=tmp_path, drop=drop)


def test_a_limit_needs_a_run_and_a_run_needs_the_stage(tmp_path):
    with pytest.raises(ConfigError, match=r"moderation\.drop needs moderation\.run"):
        ModerationConfig(drop={"A": 0.5})
    with pytest.raises(ConfigError, match=r"moderation\.run is invalid here"):
        check_moderation(ModerationConfig(run=tmp_path), None)

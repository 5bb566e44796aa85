"""The learning curve measures each round on the same texts, in the order of the number of labels."""

import pytest

from gpt.errors import ConfigError
from gpt.moderation.measures.ranking import any_label, average_precision
from launch.moderation_report.rounds import read_rounds


def test_rounds_are_sorted_by_their_labels(made, openai):
    labels = made.folder / "labels.jsonl"
    pairs = [("900", made.folder / "second.jsonl"), (str(labels), made.folder / "first.jsonl")]
    found = read_rounds(pairs, [labels], openai, resamples=20)
    assert [one.labels for one in found] == [240, 900]
    assert [name for name, _ in found[0].auprc][:2] == ["any", "S"]
    want = average_precision(any_label(made.labels), made.scores["first"].max(axis=1))
    assert dict(found[0].auprc)["any"].estimate == pytest.approx(want, abs=0.02), "labels of parents are filled in"


def test_a_round_without_a_number_is_refused(made, openai):
    with pytest.raises(ConfigError, match="--round many is neither"):
        read_rounds([("many", made.folder / "first.jsonl")], [made.folder / "labels.jsonl"], openai)

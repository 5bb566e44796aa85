"""Labels, positives and time are counted by pipeline and labeller."""

import pytest

from gpt.errors import ConfigError
from launch.moderation_report.costs import label_costs


def line(i, labeller, value, **others):
    return {"id": f"t{i}", "text": f"Text {i}.", "labeller": labeller, "labels": {"S": value, "H": 0}, **others}


def test_the_last_line_counts_and_the_rest_is_divided(openai, lines_to, tmp_path):
    path = lines_to(
        tmp_path / "labels.jsonl",
        [
            line(0, "ana", 1, pipeline="random", seconds=4),
            line(0, "ana", 0, pipeline="random", seconds=2),  # replaces the line before
            line(1, "ana", 1, pipeline="above:S", seconds=10_000),  # a break
            line(2, "ana", 1, pipeline="above:S"),
            {**line(3, "ana", 1), "labels": {}, "skipped": True},
            line(4, "ana", 1),
            {**line(4, "ana", 1), "labels": {}, "undone": True},
            line(1, "ben", 1, pipeline="above:S", seconds=6),
        ],
    )
    costs = label_costs([path], openai)
    total = costs.total
    assert (total.labels, total.positives, total.skipped, total.timed, total.seconds) == (4, 3, 1, 3, 608.0)
    assert total.by_category["S"] == 3
    random, above, unnamed = costs.by_pipeline
    assert (random.name, random.labels, random.positives, random.seconds_a_positive) == ("random", 1, 0, None)
    assert (above.name, above.labels, above.positive_share, above.seconds_a_label) == ("above:S", 3, 1.0, 303.0)
    assert above.seconds_a_positive == 303.0
    assert (unnamed.name, unnamed.labels, unnamed.skipped, unnamed.seconds_a_label) == ("not named", 0, 1, None)
    assert [(one.name, one.labels) for one in costs.by_labeller] == [("ana", 3), ("ben", 1)]
    assert [(one.category, one.n, one.both) for one in costs.agreement][:2] == [("S", 1, 1), ("H", 1, 0)]


def test_a_file_without_answers_is_refused(openai, lines_to, tmp_path):
    with pytest.raises(ConfigError, match="has no answer"):
        label_costs([lines_to(tmp_path / "scores.jsonl", [{"id": "a", "scores": {"S": 0.5}}])], openai)

"""The figures are those of the measures, and "any" is decided by every category's own threshold."""

import numpy as np
import pytest

from gpt.moderation.measures.ranking import any_label, average_precision
from launch.moderation_report.measured import as_json, best_and_worst, measure
from launch.moderation_report.versions import compare, read_version


@pytest.fixture(scope="module")
def compared(made, openai):
    versions = [
        read_version(made.folder / f"{name}.jsonl", openai, name=name, thresholds={"S": 0.9}) for name in made.scores
    ]
    return compare(versions, [made.folder / "labels.jsonl"], openai)


@pytest.fixture(scope="module")
def figures(compared):
    return measure(compared, resamples=20)


def test_each_category_and_any_are_measured(compared, figures):
    assert figures.names == ["any", "S", "H", "V", "SH", "HR", "S3", "H2", "V2"]
    for version, own in zip(compared.versions, figures.versions, strict=True):
        scores = compared.scores(version)
        any_ = own.categories[0].measures
        assert any_.auprc.estimate == average_precision(any_label(compared.labels), scores.max(axis=1))
        flagged = (scores >= np.array(version.thresholds)).any(axis=1)
        assert any_.confusion.true_positives == (flagged & (any_label(compared.labels) == 1)).sum()
        for i in range(8):
            found = own.categories[i + 1]
            assert found.measures.auprc.estimate == average_precision(compared.labels[:, i], scores[:, i])
            assert found.measures.threshold == version.thresholds[i]
            assert sum(one["texts"] for one in found.bins) == found.measures.known


def test_the_second_version_gains(figures):
    assert len(figures.gains) == 9
    first, second = (version.categories[0].measures.auprc.estimate for version in figures.versions)
    assert figures.gains[0].estimate == pytest.approx(second - first, abs=1e-12)
    assert figures.gains[1].low > 0
    assert np.isnan(figures.gains[-1].low), "V2 has too few positives for an interval"
    best, worst = best_and_worst(figures)
    assert best.auprc.estimate >= worst.auprc.estimate


def test_the_json_has_all_figures(figures):
    found = as_json(figures)
    assert found["texts"] == 240
    assert [one["model"] for one in found["versions"]] == ["m-first", "m-second"]
    assert found["versions"][0]["categories"][1]["auprc"]["estimate"] > 0.3
    assert set(found["auprc_gain"]) == set(figures.names)

"""Scores and labels are joined by id, and mistakes are named."""

import json

import numpy as np
import pytest

from gpt.errors import ConfigError
from launch.moderation_report.versions import (
    compare,
    find_taxonomy,
    open_runs,
    read_thresholds,
    read_version,
    score_run,
)


def version_of(made, openai, name="first"):
    return read_version(made.folder / f"{name}.jsonl", openai, name=name, thresholds={"S": 0.3})


def test_scores_and_labels_are_joined_by_id(made, openai):
    compared = compare([version_of(made, openai)], [made.folder / "labels.jsonl"], openai)
    assert compared.ids == tuple(f"t{i}" for i in range(240))
    np.testing.assert_array_equal(compared.scores(compared.versions[0]), made.scores["first"])
    given = ~np.isnan(made.labels)
    np.testing.assert_array_equal(compared.labels[given], made.labels[given])
    assert compared.versions[0].thresholds == (0.3,) + (0.5,) * 7
    assert compared.versions[0].model == "m-first"
    assert (compared.without_scores, compared.contradictory) == (0, 0)


def test_what_cannot_be_used_is_counted(made, openai, lines_to, tmp_path):
    labels = [
        {"id": "t0", "text": "a", "labels": {"S3": 1, "S": 0}},
        {"id": "t1", "text": "b", "labels": {"S": 1}},
        {"id": "elsewhere", "text": "c", "labels": {"S": 1}},
        {"id": "t2", "text": "d", "labels": {}},
    ]
    compared = compare([version_of(made, openai)], [lines_to(tmp_path / "l.jsonl", labels)], openai)
    assert compared.ids == ("t0", "t1")
    assert (compared.without_scores, compared.contradictory) == (1, 1)
    assert np.isnan(compared.labels[0]).all()


def test_labels_of_other_texts_are_refused(made, openai, lines_to, tmp_path):
    path = lines_to(tmp_path / "l.jsonl", [{"id": "elsewhere", "text": "c", "labels": {"S": 1}}])
    with pytest.raises(ConfigError, match="there are no scores of the 1 labelled texts"):
        compare([version_of(made, openai)], [path], openai)


def test_the_digest_in_the_summary_finds_a_shipped_taxonomy(made, tmp_path):
    assert find_taxonomy(None, [made.folder / "first.jsonl"]).label == "openai 1"
    with pytest.raises(ConfigError, match="--taxonomy is missing"):
        find_taxonomy(None, [tmp_path / "scores.jsonl"])


def test_the_summary_of_scores_brings_its_taxonomy(tmp_path):
    shop = {"name": "shop", "version": 3, "category": [{"id": "A", "title": "a", "definition": "b"}]}
    (tmp_path / "scores.summary.json").write_text(json.dumps({"taxonomy_content": shop}))
    assert find_taxonomy(None, [tmp_path / "scores.jsonl"]).label == "shop 3"
    (tmp_path / "scores.summary.json").write_text(json.dumps({"taxonomy_content": {"name": "shop"}}))
    with pytest.raises(ConfigError, match=r"the summary of .*scores\.jsonl: taxonomy_content"):
        find_taxonomy(None, [tmp_path / "scores.jsonl"])


@pytest.mark.parametrize("value", [{"S": 2}, {"S": True}, {"S": "x"}, {"Z": 0.5}])
def test_wrong_thresholds_are_refused(openai, tmp_path, value):
    (tmp_path / "thresholds.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=r"thresholds\.json"):
        read_thresholds(tmp_path / "thresholds.json", openai)


def test_a_run_scores_the_texts_and_brings_its_taxonomy(classifier_run, openai):
    runs = open_runs([classifier_run.run, classifier_run.folder / "validation.jsonl"])
    labels = [classifier_run.folder / "validation.jsonl"]
    taxonomy = find_taxonomy(None, [classifier_run.run], runs)
    assert taxonomy.ids == ("F", "F2", "T")
    version = score_run(runs[classifier_run.run], labels, taxonomy, name="run")
    compared = compare([version], labels, taxonomy)
    texts = {line["id"]: line["text"] for line in map(json.loads, labels[0].read_text().splitlines())}
    want = runs[classifier_run.run].scores([texts[one] for one in compared.ids])
    np.testing.assert_allclose(compared.scores(version), want, atol=1e-6)
    assert version.model == runs[classifier_run.run].version
    with pytest.raises(ConfigError, match="has the categories of fruit 1, not of openai 1"):
        score_run(runs[classifier_run.run], labels, openai, name="run")

"""Mistakes of `triaxial moderate report` are one line; tests/launch/moderation_report/test_page.py runs it whole."""

import json

import pytest

from launch.commands.moderate.report import without_ending
from launch.main import main
from launch.moderation.decisions import write_fitted_on


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["FIRST", "FIRST", "FIRST"], "a report compares two"),
        (["FIRST", "FIRST"], "is given twice"),
        (["FIRST", "--thresholds", "a.json", "b.json"], "--thresholds has 2 files"),
        (["FIRST", "--resamples", "0"], "--resamples 0 is invalid"),
        (["FIRST", "--html", "/nowhere/at/all.html"], "no such folder"),
        (["LABELS"], "has no scores"),
        (["FIRST", "--round", "many", "FIRST"], "--round many is neither"),
        (["FIRST", "--probes", "LABELS"], "labels.jsonl"),
        (["FIRST", "--labelled", "FIRST"], "has no answer"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, why):
    ids = ("S", "H", "V", "SH", "HR", "S3", "H2", "V2")
    paths = {"FIRST": tmp_path / "first.jsonl", "LABELS": tmp_path / "labels.jsonl"}
    paths["FIRST"].write_text(json.dumps({"id": "a", "scores": dict.fromkeys(ids, 0.5)}) + "\n")
    paths["LABELS"].write_text(json.dumps({"id": "a", "text": "Text.", "labels": {"S": 1}}) + "\n")
    given = [str(paths.get(word, word)) for word in words]
    taxonomy = ["--taxonomy", "moderation_openai"]
    assert main(["moderate", "report", *given, *taxonomy, "--labels", str(paths["LABELS"])]) == 2
    err = capsys.readouterr().err
    assert why in err
    assert len(err.strip().splitlines()) == 1


def test_texts_that_chose_the_thresholds_are_named(tmp_path, capsys):
    run, scores, labels = tmp_path / "run", tmp_path / "first.jsonl", tmp_path / "labels.jsonl"
    (run / "moderation").mkdir(parents=True)
    write_fitted_on(run, ["t0", "t1", "t2"])
    records = [{"id": f"t{i}", "text": f"text {i}", "labels": {"S": i % 2}, "scores": {"S": 0.5}} for i in range(40)]
    scores.write_text("".join(json.dumps(one) + "\n" for one in records))
    labels.write_text(scores.read_text())
    toys = {"name": "toys", "version": 1, "category": [{"id": "S", "title": "a", "definition": "b"}]}
    (tmp_path / "first.summary.json").write_text(json.dumps({"run": str(run), "taxonomy_content": toys}))
    command = ["moderate", "report", str(scores), "--labels", str(labels), "--resamples", "20"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"note: 3 of 40 texts chose the calibration or thresholds of {run}" in " ".join(out.split())
    write_fitted_on(run, ["elsewhere"])
    assert main(command) == 0
    assert "chose" not in capsys.readouterr().out


def test_thresholds_of_calibrated_scores_are_refused_for_raw_ones(tmp_path, capsys):
    for name, value in (
        ("calibration.json", {"S": {"kind": "temperature", "temperature": 2.0}}),
        ("thresholds.json", {"S": 0.4}),
        ("first.summary.json", {"calibrated": False}),
    ):
        (tmp_path / name).write_text(json.dumps(value))
    ids = ("S", "H", "V", "SH", "HR", "S3", "H2", "V2")
    (tmp_path / "first.jsonl").write_text(json.dumps({"id": "a", "scores": dict.fromkeys(ids, 0.5)}) + "\n")
    words = ["moderate", "report", str(tmp_path / "first.jsonl"), "--labels", "none", "--taxonomy", "moderation_openai"]
    assert main([*words, "--thresholds", str(tmp_path / "thresholds.json")]) == 2
    assert "they were chosen of calibrated scores, and the file has raw ones" in capsys.readouterr().err


def test_a_version_is_named_without_its_ending():
    names = ["june.jsonl.gz", "a.b.parquet", "plain"]
    assert [without_ending(name) for name in names] == ["june", "a.b", "plain"]

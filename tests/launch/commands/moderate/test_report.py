"""Mistakes of `triaxial moderate report` are one line; tests/launch/moderation_report/test_page.py runs it whole."""

import json

import pytest

from launch.commands.moderate.report import without_ending
from launch.main import main


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


def test_a_version_is_named_without_its_ending():
    names = ["june.jsonl.gz", "a.b.parquet", "plain"]
    assert [without_ending(name) for name in names] == ["june", "a.b", "plain"]

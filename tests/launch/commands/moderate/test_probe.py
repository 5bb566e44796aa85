"""`triaxial moderate probe`: every probe on files, with a scorer that the test knows; no text in the output."""

import json

import pytest
from moderation_files import SECRET, write_lines, write_taxonomy

from launch.main import main

SCORER = """
import numpy as np

def score(texts):
    return np.array([[0.05 + 0.9 * ("boat" in text), 0.05 + 0.4 * ("train" in text)] for text in texts])

def flat(texts):
    return np.zeros(len(texts))

def wide(texts):
    return np.zeros((len(texts), 3))
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    (tmp_path / "toy_scorer.py").write_text(SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    return ["moderate", "probe", "toy_scorer:score", "--taxonomy", str(write_taxonomy(tmp_path))]


def test_every_probe(tmp_path, capsys, command):
    suite = tmp_path / "suite.csv"
    suite.write_text(
        "functionality,test_case,label_gold,target_ident\n"
        f"sail_h,a boat {SECRET},hateful,sea\nsail_h,a ship {SECRET},hateful,sea\nrail_nh,a train,non-hateful,\n"
    )
    (tmp_path / "templates.csv").write_text(
        "template,toxicity,phrase\nx,nontoxic,we like {type|identity} things\ny,toxic,we sink {type|identity} things\n"
    )
    (tmp_path / "words.csv").write_text("type,subtype,connotation,word\nidentity,v,,boat\nidentity,v,,car\n")
    labels = write_lines(
        tmp_path / "labels.jsonl",
        [
            {
                "id": f"t{i}",
                "text": f"{SECRET} a boat on water" if i % 2 else f"{SECRET} a car",
                "labels": {"A": i % 2, "B": 0},
                "groups": {"language": "en" if i < 40 else "de"},
            }
            for i in range(60)
        ],
    )
    report, reduced = tmp_path / "probe.json", tmp_path / "reduced.jsonl"
    options = ["--suite", f"{suite}=A", "--by-target", "--templates", str(tmp_path / "templates.csv")]
    options += ["--words", str(tmp_path / "words.csv"), "--labels", str(labels), "--slice-by", "language"]
    options += ["--reduce", "3", "--reduced", str(reduced), "--resamples", "10", "--json", str(report)]
    assert main([*command, *options]) == 0
    out = capsys.readouterr().out
    assert SECRET not in out
    assert "right: all 66.7%, positive 50.0%, negative 100.0%" in out
    text = report.read_text()
    assert SECRET not in text
    found = json.loads(text)
    assert (found["model"], found["taxonomy"]) == ("toy_scorer:score", "toys 1")
    assert [(one["function"], one["target"], one["right"]) for one in found["functional"][0]["results"]] == [
        ("sail_h", "", 1),
        ("rail_nh", "", 1),
        ("sail_h", "sea", 1),
    ]
    gap = found["counterfactuals"][0]
    assert gap["mean_range"] == pytest.approx(0.9)
    assert {one["word"]: one["flagged_negatives"] for one in gap["words"]} == {"boat": 1, "car": 0}
    effects = {(one["name"], one["category"]): one for one in found["perturbations"]}
    assert effects["hashtags", "A"]["still_flagged"] == effects["hashtags", "A"]["flagged_before"] == 30
    slices = [(one["field"], one["value"], one["texts"]) for one in found["slices"]]
    assert slices == [("language", "en", 40), ("language", "de", 20), ("length", "0-49", 60)]
    assert found["reduction"]["A"]["reduced"] == 3
    assert {json.loads(line)["left"] for line in reduced.read_text().splitlines()} == {"boat"}


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ([], "nothing to probe"),
        (["--templates", "t.csv"], "belong together"),
        (["--suite", "file.csv"], "must be FILE=CATEGORY"),
        (["--suite", "file.csv=C"], "no category of"),
        (["--suite", "file.csv=A", "--limit", "2"], "--limit 2.0 is invalid"),
        (["--suite", "file.csv=A", "--slice-by", "x"], "--slice-by is only valid with --labels"),
    ],
)
def test_mistakes_are_one_line(capsys, command, options, rule):
    assert main([*command, *options]) == 2
    err = capsys.readouterr().err
    assert rule in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("scorer", "rule"),
    [
        ("toy_scorer:flat", "must return an array"),
        ("toy_scorer:wide", "must give 2 probabilities"),
        ("toy_scorer:none", "cannot be imported"),
        ("no-run-here", "not module:function"),
    ],
)
def test_refuses_a_scorer_that_gives_no_probabilities(capsys, command, scorer, rule):
    assert main([*command[:2], scorer, *command[3:], "--suite", "file.csv=A"]) == 2
    assert rule in capsys.readouterr().err


def test_probes_a_run(tmp_path, capsys, classifier_run):
    suite, report = tmp_path / "suite.jsonl", tmp_path / "probe.json"
    write_lines(suite, [{"function": "f", "text": "one apple", "label": 1}, {"function": "f", "text": "x", "label": 0}])
    command = ["moderate", "probe", str(classifier_run.run), "--suite", f"{suite}=F", "--device", "cpu"]
    assert main([*command, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["taxonomy"] == "fruit 1"
    assert found["functional"][0]["results"][0]["cases"] == 2
    assert main([*command, "--taxonomy", str(write_taxonomy(tmp_path))]) == 2
    assert "only valid with module:function" in capsys.readouterr().err

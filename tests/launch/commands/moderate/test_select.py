"""`triaxial moderate select`: files in, texts to label out; mistakes in one line; no text on the screen."""

import gzip
import json

import numpy as np
import pytest

from launch.main import main

SECRET = "harmless-marker"


@pytest.fixture
def scores(tmp_path):
    """Two files of 300 scored texts with two categories, the second one packed."""
    rng = np.random.default_rng(0)
    lines = [
        json.dumps(
            {
                "id": f"t{i}",
                "text": f"{SECRET} {i}",
                "scores": {"A": round(float(rng.beta(0.5, 3)), 4), "B": round(float(rng.random()), 4)},
                "groups": {"language": "en" if i % 10 else "de"},
            }
        )
        for i in range(600)
    ]
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    first.write_text("\n".join(lines[:300]) + "\n")
    second.write_bytes(gzip.compress("\n".join(lines[300:]).encode()))
    return [str(first), str(second)]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_selects_texts_that_are_not_labelled_yet(tmp_path, capsys, scores):
    output, labelled, counts = tmp_path / "round1.jsonl", tmp_path / "labelled.jsonl", tmp_path / "counts.json"
    known = [*(f"t{i}" for i in range(100)), "elsewhere"]  # the last one is not in the pool
    labelled.write_text("".join(json.dumps({"id": one, "text": "x", "labels": {}}) + "\n" for one in known))
    command = ["moderate", "select", *scores, "--n", "60", "--labelled", str(labelled), "--output", str(output)]
    assert main([*command, "--json", str(counts)]) == 0
    out = capsys.readouterr().out
    assert "selected 60 of 500 texts; 100 further texts of the pool labelled already" in out
    assert SECRET not in out
    found = lines_of(output)
    assert len(found) == 60
    assert all(int(one["id"][1:]) >= 100 and one["text"].startswith(SECRET) for one in found)
    assert {one["weight"] for one in found} == {1.0}
    value = json.loads(counts.read_text())
    assert value["pipelines"] == {"random": 20, "above:A": 10, "above:B": 10, "uncertain:A": 10, "uncertain:B": 10}
    assert not list(tmp_path.glob(".round1*"))
    first = output.read_bytes()
    assert main([*command[:2], *reversed(scores), *command[4:]]) == 0
    assert output.read_bytes() == first


def test_groups_top_and_one_category(tmp_path, capsys, scores):
    output, counts = tmp_path / "r.jsonl", tmp_path / "counts.json"
    options = ["--categories", "A", "--top", "50", "--group-by", "language", "--shares", "0", "1", "1"]
    command = ["moderate", "select", *scores, "--n", "20", "--output", str(output), "--json", str(counts)]
    assert main([*command, *options]) == 0
    value = json.loads(counts.read_text())
    assert set(value["groups"]) == {"en", "de"}
    assert set(value["mean_scores"]) == {"A"}
    weights = {one["groups"]["language"]: one["weight"] for one in lines_of(output)}
    assert weights["de"] > 1 > weights["en"]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--n", "0"], "--n 0 is invalid"),
        (["--shares", "0", "0", "0"], "--shares 0 0 0 is invalid"),
        (["--categories", "C"], "no category of these files"),
        (["--above", "A=2"], "number from 0 to 1"),
        (["--above", "A=0.2", "--top", "5"], "exclude each other"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, scores, options, rule):
    assert main(["moderate", "select", *scores, "--output", str(tmp_path / "r.jsonl"), *options]) == 2
    err = capsys.readouterr().err
    assert rule in err
    assert len(err.strip().splitlines()) == 1


def test_a_damaged_score_is_named_by_its_line_and_no_text_is_shown(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    good = {"id": "a", "text": SECRET, "scores": {"A": 0.5}}
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"scores": {"A": None}}) + "\n")
    assert main(["moderate", "select", str(path), "--output", str(tmp_path / "r.jsonl")]) == 2
    err = capsys.readouterr().err
    assert "line 2: the score of 'A' must be a number from 0 to 1" in err
    assert SECRET not in err

"""`triaxial moderate generate`: texts of a language model and of templates, and the check that refuses noisy ones."""

import json

import pytest
from moderation_files import SECRET, write_lines, write_taxonomy

from launch.main import main


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_templates_become_labelled_texts(tmp_path, capsys):
    (tmp_path / "templates.csv").write_text(
        "template,toxicity,phrase\nx,nontoxic,we like {type|identity} things\ny,toxic,we sink {type|identity} things\n"
    )
    (tmp_path / "words.csv").write_text("type,subtype,connotation,word\nidentity,v,,red\nidentity,v,,blue\n")
    output = tmp_path / "synthetic.jsonl"
    command = ["moderate", "generate", "templates", "--templates", str(tmp_path / "templates.csv")]
    command += ["--words", str(tmp_path / "words.csv"), "--taxonomy", str(write_taxonomy(tmp_path))]
    assert main([*command, "--category", "A", "--output", str(output)]) == 0
    assert [(one["text"], one["labels"]) for one in lines_of(output)] == [
        ("we like red things", {"A": 0}),
        ("we like blue things", {"A": 0}),
        ("we sink red things", {"A": 1}),
        ("we sink blue things", {"A": 1}),
    ]
    assert {one["source"] for one in lines_of(output)} == {"synthetic template"}
    assert "wrote 4 of 4 texts of A" in capsys.readouterr().out
    assert main([*command, "--category", "C", "--output", str(output)]) == 2


@pytest.fixture
def language_model(saved_runs, tmp_path, monkeypatch):
    """A run with random weights and a context long enough for a prompt."""
    monkeypatch.setitem(saved_runs.SIZES, "n_ctx", 512)
    (tmp_path / "model").mkdir()
    return saved_runs.save_training(tmp_path / "model").directory


def test_a_language_model_writes_few_shot_texts(tmp_path, capsys, language_model):
    examples = write_lines(tmp_path / "e.jsonl", [{"text": f"{SECRET} boat", "labels": {"A": 1}}])
    output = tmp_path / "synthetic.jsonl"
    command = ["moderate", "generate", "model", str(language_model), "--taxonomy", str(write_taxonomy(tmp_path))]
    command += ["--category", "A", "--examples", str(examples), "--n", "6", "--max-new-tokens", "12", "--device", "cpu"]
    assert main([*command, "--output", str(output)]) == 0
    found = lines_of(output)
    assert 0 < len(found) <= 6
    assert all(one["labels"] == {"A": 1} and one["source"] == "synthetic few-shot" for one in found)
    out = capsys.readouterr().out
    assert not any(one["text"] in out for one in found)
    first = output.read_bytes()
    assert main([*command, "--output", str(output)]) == 0
    assert output.read_bytes() == first
    assert main([*command, "--negative", "--output", str(output)]) == 2
    assert "no text that is labelled negative" in capsys.readouterr().err


def test_the_check_refuses_noisy_texts_with_the_figure(tmp_path, capsys):
    texts = [{"id": f"s{i}", "text": f"{SECRET} {i}", "labels": {"A": 1}} for i in range(30)]
    path = write_lines(tmp_path / "s.jsonl", texts)
    command = ["moderate", "generate", "check", str(path), "--taxonomy", str(write_taxonomy(tmp_path))]
    good = write_lines(
        tmp_path / "g.jsonl", [{**one, "labels": {"A": int(i != 3)}} for i, one in enumerate(texts[:20])]
    )
    report = tmp_path / "check.json"
    assert main([*command, "--auditor", str(good), "--json", str(report)]) == 0
    assert "95.0% (95% 75.1%-99.9%) of 20 labels agree" in capsys.readouterr().out
    assert json.loads(report.read_text())["agreeing"] == 19
    scores = [{"id": one["id"], "scores": {"A": 0.9 if i < 24 else 0.1, "B": 0.0}} for i, one in enumerate(texts)]
    assert main([*command, "--scores", str(write_lines(tmp_path / "p.jsonl", scores))]) == 2
    err = capsys.readouterr().err
    assert "is refused: 80.0%" in err
    assert SECRET not in err


@pytest.mark.parametrize("options", [["--min-agreement", "0"], ["--min-agreement", "1.1"]])
def test_an_impossible_share_is_refused(tmp_path, capsys, options):
    path = write_lines(tmp_path / "s.jsonl", [{"id": "a", "text": "boat", "labels": {"A": 1}}])
    command = ["moderate", "generate", "check", str(path), "--taxonomy", str(write_taxonomy(tmp_path))]
    assert main([*command, "--auditor", str(path), *options]) == 2
    assert "--min-agreement" in capsys.readouterr().err

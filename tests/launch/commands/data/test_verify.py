"""`triaxial prepare verify`: the exit status and the lines; tests/data_prep/corpus/test_verify.py has every fault."""

import json

import pytest

from launch.commands.data import verify
from launch.main import COMMANDS, main

pytest.importorskip("isal", reason="the extra 'data' is not installed")

RECIPE = """
[input]
paths = ["{folder}/texts.jsonl"]
[output]
folder = "{folder}/corpus"
validation_fraction = 0.2
[language]
keep = []
[quality]
rules = []
[tokenizer]
vocab_size = 300
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    lines = [json.dumps({"id": str(i), "text": f"The {i}th text is about the number {i * i}."}) for i in range(40)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    assert main(["prepare", str(folder / "recipe.toml"), "--workers", "1"]) == 0
    return folder / "corpus"


def test_a_whole_corpus_and_a_damaged_one(corpus, capsys):
    assert COMMANDS["prepare verify"][0] == verify.__name__
    capsys.readouterr()
    assert main(["prepare", "verify", str(corpus), "--workers", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{corpus}: whole; ")
    with (corpus / "train.bin").open("r+b") as file:
        file.write(b"\xff")
    assert main(["prepare", "verify", str(corpus), "--workers", "1"]) == 1
    *faults, summary = capsys.readouterr().out.splitlines()
    assert "train.bin" in faults[0]
    assert summary.startswith(f"{corpus}: {len(faults)} fault")


def test_zero_workers_are_a_mistake(corpus, capsys):
    assert main(["prepare", "verify", str(corpus), "--workers", "0"]) == 2
    assert capsys.readouterr().err == "triaxial: error: --workers 0 is invalid: must be at least 1\n"

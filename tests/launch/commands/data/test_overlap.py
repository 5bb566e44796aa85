"""After a corpus is decontaminated, `triaxial prepare overlap` finds the examples clean that were dirty before."""

import json
import random

import pytest

from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.main import main

pytest.importorskip("isal", reason="the extra 'data' is not installed")


def passage(rng: random.Random, n: int) -> str:
    return " ".join(f"{rng.choice('bdfgklmnprst')}{rng.choice('aeiou')}{rng.randrange(9999)}" for _ in range(n))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 documents in two files; example 0 in two, 1 in a short one, 2 in twelve, 3 in one of the validation
    split (d0), 4 in none."""
    path = tmp_path_factory.mktemp("overlap")
    rng = random.Random(0)
    examples = [passage(rng, 20) for _ in range(5)]
    documents = []
    for i in range(30):
        middle = {0: examples[3], 2: examples[0], 3: examples[0]}.get(i, examples[2] if i >= 18 else passage(rng, 20))
        documents.append({"id": f"d{i}", "text": f"{passage(rng, 90)}\n{middle}\n{passage(rng, 90)}"})
    documents[6]["text"] = f"Short: {examples[1]}"
    for n in range(2):
        (path / f"{n}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents[n::2]))
    (path / "set.jsonl").write_text("".join(json.dumps({"id": i, "q": e}) + "\n" for i, e in enumerate(examples)))
    return path


RECIPE = """
input.paths = ["{folder}/[01].jsonl"]
language.enabled = false
quality.rules = []
dedup_minhash.enabled = false
tokenizer.vocab_size = 400
output = {{folder = "{out}", validation_fraction = 0.2}}
"""
SETS = """
[[decontaminate.sets]]
name = "quiz"
paths = ["{folder}/set.jsonl"]
fields = ["q"]
"""
ANALYSIS = """
training.corpora = ["{out}"]
output.folder = "{out}/overlap"
[[overlap.sets]]
name = "quiz"
paths = ["{folder}/set.jsonl"]
fields = ["q"]
"""


def dirty(folder, out, capsys) -> list[int]:
    """The dirty examples of the corpus in `out`, from the command."""
    (folder / "overlap.toml").write_text(ANALYSIS.format(folder=folder, out=out))
    assert main(["prepare", "overlap", str(folder / "overlap.toml"), "--workers", "1"]) == 0
    assert "quiz" in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "overlap/examples.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2", "3", "4"]
    return [line["index"] for line in lines if line["dirty"]]


def test_a_corpus_is_cleaned(folder, capsys):
    (folder / "plain.toml").write_text(RECIPE.format(folder=folder, out=folder / "plain"))
    assert main(["prepare", str(folder / "plain.toml"), "--workers", "1"]) == 0
    assert "decontamination" not in json.loads((folder / "plain/corpus.json").read_text())
    assert dirty(folder, folder / "plain", capsys) == [0, 1, 2], (
        "what is only in the validation split is not trained on"
    )

    (folder / "clean.toml").write_text((RECIPE + SETS).format(folder=folder, out=folder / "clean"))
    assert main(["prepare", str(folder / "clean.toml"), "--workers", "2"]) == 0
    output = capsys.readouterr().out
    assert "evaluation sets in the corpus" in output
    assert "too frequent, left in" in output
    assert dirty(folder, folder / "clean", capsys) == [2], "in twelve documents: too frequent to be cut"

    description = json.loads((folder / "clean/corpus.json").read_text())
    found = description["decontamination"]
    assert found["sets"] == [
        {
            "name": "quiz",
            "examples": 5,
            "too_short": 0,
            "n_words": 13,
            "grams": 40,
            "examples_hit": 3,
            "grams_hit": 24,
            "grams_ignored": 8,
            "documents_hit": 4,
        }
    ]
    assert (found["documents_hit"], found["documents_cut"]) == (4, 3)
    steps = {step["step"]: step for step in description["steps"]}
    assert steps["decontaminate"]["documents_in"] == 30
    assert steps["decontaminate"]["dropped"] == {"no_long_piece": 1}
    assert steps["pieces"]["documents_out"] == steps["tokenize"]["documents_in"] == 32
    assert description["documents"] == 32

    tokenizer = load_tokenizer(folder / "clean/tokenizer.model")
    example = json.loads((folder / "set.jsonl").read_text().splitlines()[0])["q"]
    for prefix in ("train", "validation"):
        file = TokenFile(folder / "clean" / prefix)
        text = tokenizer.decode(file.read(0, file.document_start(file.n_documents)).tolist())
        assert example not in text

    assert main(["prepare", str(folder / "clean.toml"), "--explain", "d2"]) == 0
    output = capsys.readouterr().out
    assert "kept as d2#piece-0 in the" in output
    assert len({line.split(" in the ")[1][:8] for line in output.splitlines() if "#piece-" in line}) == 1, "one split"
    assert main(["prepare", str(folder / "clean.toml"), "--explain", "d6"]) == 0
    assert "decontaminate: dropped, no_long_piece" in capsys.readouterr().out

    # Half of the input, in the same work folder, and no corpus: what lies there is not what the model is trained on.
    other = ("--input.paths", f'["{folder}/0.jsonl"]', "--tokenizer.vocab_size", "9_000_000")
    assert main(["prepare", str(folder / "clean.toml"), "--workers", "1", *other]) == 2
    assert "9000000" in capsys.readouterr().err
    assert main(["prepare", "overlap", str(folder / "overlap.toml")]) == 2
    assert "the last run there did not finish" in capsys.readouterr().err
    assert main(["prepare", str(folder / "clean.toml"), "--explain", "d2"]) == 0
    assert "so far kept as d2#piece-0;" in capsys.readouterr().out
    apart = ("--output.folder", str(folder / "apart"), "--output.work", str(folder / "clean/work"), "--workers", "1")
    assert main(["prepare", str(folder / "clean.toml"), *apart, *other[:2]]) == 0
    assert main(["prepare", "overlap", str(folder / "overlap.toml")]) == 2
    assert "another recipe ran there since" in capsys.readouterr().err


def test_mistakes_are_one_line(folder, capsys):
    (folder / "bad.toml").write_text((RECIPE + SETS).format(folder=folder, out=folder / "bad"))
    assert main(["prepare", str(folder / "bad.toml"), "--decontaminate.max_pieces", "0"]) == 2
    assert "decontaminate.max_pieces = 0" in capsys.readouterr().err
    (folder / "none.toml").write_text(ANALYSIS.format(folder=folder, out=folder / "none"))
    assert main(["prepare", "overlap", str(folder / "none.toml")]) == 2
    assert "Run `triaxial prepare` to make the corpus" in capsys.readouterr().err
    sets = SETS.replace("set.jsonl", "gone.jsonl")
    (folder / "bad.toml").write_text((RECIPE + sets).format(folder=folder, out=folder / "bad"))
    assert main(["prepare", str(folder / "bad.toml")]) == 2
    assert "decontaminate.sets 'quiz': no file matches" in capsys.readouterr().err
    (folder / "empty.jsonl").write_text("")
    sets = SETS.replace("set.jsonl", "empty.jsonl")
    (folder / "bad.toml").write_text((RECIPE + sets).format(folder=folder, out=folder / "bad"))
    assert main(["prepare", str(folder / "bad.toml")]) == 2
    assert "decontaminate.sets 'quiz': no example in" in capsys.readouterr().err
    sets = SETS.replace('"q"', '"p"')
    (folder / "bad.toml").write_text((RECIPE + sets).format(folder=folder, out=folder / "bad"))
    assert main(["prepare", str(folder / "bad.toml")]) == 2
    assert "record 1 has none of the fields p" in capsys.readouterr().err
    assert not (folder / "bad").exists(), "said before any work"
    (folder / "none.toml").write_text(ANALYSIS.format(folder=folder, out=folder / "none").replace("set.j", "empty.j"))
    (folder / "x.txt").write_text("x")
    texts = ("--training.corpora", "[]", "--training.paths", f'["{folder}/x.txt"]')
    assert main(["prepare", "overlap", str(folder / "none.toml"), *texts]) == 2
    assert "evaluation set 'quiz': no example in" in capsys.readouterr().err
    (folder / "none").mkdir(exist_ok=True)
    for content in ("[]", "{}"):
        (folder / "none/corpus.json").write_text(content)
        assert main(["prepare", "overlap", str(folder / "none.toml")]) == 2
        assert "corpus.json: damaged" in capsys.readouterr().err
    assert main(["prepare", "x" * 300]) == 2
    assert "file name too long" in capsys.readouterr().err

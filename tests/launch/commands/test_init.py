"""`triaxial init`: each kind of a person's data gives a training model in two commands."""

import json
import os
import random
import subprocess
import sys
import tomllib

import pytest
from hub_server import Hub, serve

from launch.commands.init import name_of
from launch.main import main

pytest.importorskip("isal", reason="the extra 'data' is not installed")
SMALL = ["--params", "60k", "--tokens", "6k"]
SYLLABLES = ("ka", "to", "mi", "ren", "sol", "da", "vo", "lis", "per", "an", "gu", "be")


def prose(seed: int, n_words: int) -> str:
    """Sentences of invented words, in paragraphs."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(n_words)]
    sentences = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, n_words, 12)]
    return "\n\n".join(" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4))


def one_file(folder):
    (folder / "poem.txt").write_text(prose(1, 9000))
    return ["poem.txt"]


def mixed_files(folder):
    """A folder of 129 files: text, Markdown, a page, code, a picture, a README."""
    deep = folder / "notes" / "deep"
    deep.mkdir(parents=True)
    for number in range(124):
        (deep / f"{number}.txt").write_text(prose(number, 90))
    (folder / "notes/README.md").write_text("# Notes\n\n" + prose(200, 60))
    (folder / "notes/page.html").write_text(f"<html><body><p>{prose(201, 200)}</p></body></html>")
    (folder / "notes/code.py").write_text(f'"""{prose(202, 60)}"""\n')
    (folder / "notes/picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0" + random.Random(0).randbytes(2000))
    (folder / "notes/empty.txt").write_text("")
    return ["notes"]


def json_lines(folder):
    rows = [{"title": f"Title {n}", "content": prose(n, 60), "score": n, "id": 1} for n in range(100)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["rows.jsonl"]


def latin_files(folder):
    (folder / "old").mkdir()
    for number in range(30):
        text = prose(number, 200).replace("an", "été à Nîmes").replace("be", "cœur")
        (folder / f"old/{number}.txt").write_bytes(text.encode("cp1252" if number % 3 else "utf-8"))
    return ["old"]


def parquet_folder(folder):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "table").mkdir()
    for part in range(3):
        texts = [prose(100 * part + n, 60) for n in range(60)]
        table = arrow.table({"url": [f"http://x/{n}" for n in range(60)], "body": texts, "id": [7] * 60})
        parquet.write_table(table, folder / f"table/part-{part}.parquet")
    return ["table"]


KINDS = {f.__name__: f for f in (one_file, mixed_files, json_lines, latin_files, parquet_folder)}
FOUND = {
    "one_file": "cut from long texts at paragraphs",
    "mixed_files": "left out, no text: 2 files (empty.txt, picture.png)",
    "json_lines": "fields with text: content, title; used: content",
    "latin_files": "not UTF-8: 20 files (1.txt, 10.txt, 11.txt), read as cp1252",
    "parquet_folder": "used: body",
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_commands_after_init_train_a_model(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    inputs = KINDS[kind](tmp_path)
    assert main(["init", *inputs, *SMALL]) == 0
    said = capsys.readouterr().out
    assert FOUND[kind] in said
    assert ("all documents have one id" in said) == (kind in ("json_lines", "parquet_folder"))
    name = name_of(inputs[0])
    *_, prepare, train = said.splitlines()
    assert (prepare.split(), train.split()) == (
        ["triaxial", "prepare", f"runs/{name}/data.toml"],
        ["triaxial", "train", f"runs/{name}/train.toml"],
    )
    assert main([*prepare.split()[1:], "--workers", "1"]) == 0
    assert "warning" not in capsys.readouterr().out, "curated: nothing is lost"
    corpus = json.loads((tmp_path / f"runs/{name}/corpus/corpus.json").read_text())
    assert corpus["splits"]["validation"]["documents"] >= 1
    read, *_ = corpus["steps"]
    assert read["dropped"] == {}
    assert main(train.split()[1:]) == 0
    rows = [json.loads(line) for line in (tmp_path / f"runs/{name}/run/metrics.jsonl").read_text().splitlines()]
    assert any("loss" in row for row in rows)
    summary = json.loads((tmp_path / f"runs/{name}/run/train_summary.json").read_text())
    assert summary["ended"] == "total_tokens"
    assert set(summary["validation_loss_nats"]) == {name}
    recipe = tomllib.loads((tmp_path / f"runs/{name}/train.toml").read_text())
    assert "schedule" not in recipe, "warm-up and decay follow the total by rule"
    assert summary["seconds"]["evaluation"] < summary["seconds"]["training"]


def triaxial(words, folder, **variables):
    """Run a command. An address in HF_ENDPOINT is read when huggingface_hub is imported."""
    online = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "0")  # training sets them
    environment = {**os.environ, **online, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1", **variables}
    command = [sys.executable, "-m", "launch.main", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_one_command_goes_from_texts_to_a_model(tmp_path):
    inputs = one_file(tmp_path)
    done = triaxial(["init", *inputs, *SMALL, "--train"], tmp_path)
    assert done.returncode == 0, done.stderr
    name = name_of(inputs[0])
    assert f"$ triaxial train runs/{name}/train.toml" in done.stdout
    assert (tmp_path / f"runs/{name}/run/train_summary.json").exists()
    (tmp_path / inputs[0]).write_text("changed")
    again = triaxial(["init", *inputs, *SMALL, "--train", "--force"], tmp_path)
    assert again.returncode == 2, "one short text is refused by the first command that looks at it"


def test_a_data_set_of_the_hub_is_sampled_and_trained_on(tmp_path):
    """A stand-in serves the Hub's addresses. Looking reads a part of each file; `prepare` reads them once."""
    pytest.importorskip("huggingface_hub")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = {"README.md": b"# A data set", ".gitattributes": b"*.parquet lfs"}
    for part in range(2):
        table = arrow.table({"content": [prose(1000 * part + n, 1500) for n in range(120)]})
        parquet.write_table(table, tmp_path / "part.parquet", row_group_size=10, compression="none")
        files[f"data/train-{part}.parquet"] = (tmp_path / "part.parquet").read_bytes()
    with serve(Hub("someone/stories", files)) as hub:
        made = triaxial(["init", "hf://datasets/someone/stories", *SMALL], tmp_path, HF_ENDPOINT=hub.url)
        assert made.returncode == 0, made.stderr
        assert "used: content" in made.stdout
        sizes = {name: len(data) for name, data in files.items() if name.endswith(".parquet")}
        assert all(hub.sent[name] < 0.75 * n_bytes for name, n_bytes in sizes.items()), (hub.sent, sizes)
        recipe = tomllib.loads((tmp_path / "runs/stories/data.toml").read_text())
        assert recipe["input"]["paths"] == ["hf://datasets/someone/stories/**/*.parquet"]
        words = ["prepare", "runs/stories/data.toml", "--workers", "1"]
        prepared = triaxial(words, tmp_path, HF_ENDPOINT=hub.url)
        assert prepared.returncode == 0, prepared.stderr
    corpus = json.loads((tmp_path / "runs/stories/corpus/corpus.json").read_text())
    assert corpus["documents"] == 240
    trained = triaxial(["train", "runs/stories/train.toml"], tmp_path)
    assert trained.returncode == 0, trained.stderr
    words = ["init", "hf://datasets/someone/stories", "--out", "again", *SMALL]
    refused = triaxial(words, tmp_path, HF_ENDPOINT=hub.url)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "hf://datasets/someone/stories" in refused.stderr


def bad(folder, name):
    """Write the input of a case and return the words of the command."""
    path = folder / "input"
    path.mkdir()
    if name == "binary":
        for number in range(3):
            (path / f"{number}.txt").write_bytes(random.Random(number).randbytes(5000))
    elif name == "short":
        (path / "short.txt").write_text("A short text.")
    elif name == "numbers":
        (path / "n.jsonl").write_text('{"a": 1, "b": [2]}\n' * 50)
    elif name == "uniform":
        (path / "same.txt").write_text("a a a a\n" * 5000)
    elif name == "existing":
        (path / "a.txt").write_text(prose(1, 4000))
        (folder / "runs/input").mkdir(parents=True)
        (folder / "runs/input/train.toml").write_text("mine")
    return ["init", {"missing": "inpt"}.get(name, "input")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "input: there are no files. Give a folder or files with texts"),
        ("missing", "inpt: no such file or folder (current folder: "),
        ("binary", "input: none of the 3 files is text (0.txt, 1.txt, 2.txt). Give text"),
        ("short", "input: 13 bytes of text are too few to train on. Give at least 20,000"),
        ("numbers", "input/n.jsonl: no field holds text. Its fields: a, b. Write the texts to one field first"),
        ("uniform", "input: the texts are too uniform for a vocabulary of 320 pieces. Give other or more texts"),
        ("existing", "runs/input/train.toml exists. Use --force to write over it, or --out for another folder"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, name, message):
    monkeypatch.chdir(tmp_path)
    assert main(bad(tmp_path, name)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "runs/input/data.toml").exists()
    if name == "existing":
        assert (tmp_path / "runs/input/train.toml").read_text() == "mine"
        assert main(["init", "input", "--force", *SMALL]) == 0
        assert "triaxial init" in (tmp_path / "runs/input/train.toml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--params", "many"], "'many' is invalid: must be a number from 1k on, such as 30M or 1.3B"),
        (["--time", "soon"], "'soon' is invalid: must be a time of at least 10s, such as 30m, 2h or 1d"),
        (["--params", "1M", "--depth", "2"], "--params and --depth both choose the model's size"),
        (["--tokens", "1M", "--time", "1h"], "--tokens and --time both choose the length of training"),
        (["--depth", "0"], "a depth of 0 layers is invalid"),
        (["--nproc", "0"], "--nproc 0 is invalid: must be at least 1"),
        (["hf://datasets/a/b"], "give local files or URLs, not both"),
    ],
)
def test_a_wrong_wish_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(prose(1, 4000))
    assert main(["init", "a.txt", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_names_come_from_the_last_part():
    names = {
        "a/b.txt": "b",
        "x/": "x",
        ".": "mine",
        "hf://datasets/o/n": "n",
        "a b/c d.jsonl.gz": "c-d",
        "~/Täxte": "T-xte",
    }
    assert {path: name_of(path) for path in names} == names

"""A sequence of a run leads to the documents, ids and URLs of the texts that it was made of."""

import json
import tomllib

import pytest

from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.config.run_config import as_dict, build_run_config
from launch.main import main

pytest.importorskip("resiliparse", reason="needs the extra 'data'")

PREPARE = """
[input]
paths = ["{folder}/*.jsonl"]
[output]
folder = "{folder}/corpus"
validation_fraction = 0.2
[language]
keep = []
[quality]
rules = []
[tokenizer]
vocab_size = 400
"""
TRAIN = """
run = {{ directory = "{folder}/run" }}
model = {{ vocab_size = 400, n_ctx = 64, n_layers = 2, d_model = 32, n_heads = 2 }}
batch = {{ micro_batch_size = 2, global_batch_tokens = 512 }}
train = {{ total_steps = 4 }}
[data]
tokenizer = "{folder}/corpus"
seq_len = 64
train = [{{ path = "{folder}/corpus/train" }}, {{ path = "{folder}/corpus/validation" }}]
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a prepared corpus of 60 texts and a run on it that has not begun; and the texts by id."""
    folder = tmp_path_factory.mktemp("audited")
    words = [
        "the",
        "river",
        "ran",
        "past",
        "old",
        "mills",
        "where",
        "grey",
        "herons",
        "waited",
        "for",
        "slow",
        "fish",
        "in",
        "the",
        "evening",
        "light",
    ]
    texts = {
        f"doc-{n}": " ".join(words[(n * 7 + i * (n + 3)) % len(words)] for i in range(30 + n)) + f" number {n}."
        for n in range(60)
    }
    for part in range(2):
        lines = [{"id": i, "text": t, "url": f"https://example.org/{i}"} for i, t in list(texts.items())[part::2]]
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "recipe.toml").write_text(PREPARE.format(folder=folder))
    words = ["--workers", "1", "--dedup_minhash.enabled", "false"]
    assert main(["prepare", str(folder / "recipe.toml"), *words]) == 0
    (folder / "run").mkdir()
    config = build_run_config(tomllib.loads(TRAIN.format(folder=folder)))
    (folder / "run" / "config.json").write_text(json.dumps(as_dict(config)))
    return folder, texts


def audit(capsys, folder, *words):
    capsys.readouterr()
    status = main(["data", "audit", str(folder / "run"), "--steps", "1-4", "--json", "-", *words])
    return status, capsys.readouterr()


def test_each_part_is_a_piece_of_the_document_that_is_named(prepared, capsys):
    folder, texts = prepared
    status, said = audit(capsys, folder, "--text", "--source")
    assert status == 0, said.err
    tokenizer = load_tokenizer(folder / "corpus")
    seen = set()
    for sequence in map(json.loads, said.out.splitlines()):
        for part in sequence["documents"]:
            ids = [*tokenizer.encode(texts[part["id"]]), tokenizer.end_of_document_id]
            piece = ids[part["offset_tokens"] : part["offset_tokens"] + part["n_tokens"]]
            assert len(piece) == part["n_tokens"]
            file = TokenFile(folder / "corpus" / ("train" if part["file"].endswith("train.bin") else "validation"))
            start = file.document_start(part["document"]) + part["offset_tokens"]
            assert file.read(start, start + part["n_tokens"]).tolist() == piece
            assert part["text"] == " ".join(tokenizer.decode(piece[:32]).split())[:40]
            assert part["url"] == f"https://example.org/{part['id']}"
            seen.add((part["file"], part["id"]))
    assert len({file for file, _ in seen}) == 2, "both splits were read"
    assert len(seen) > 20


def test_without_the_option_no_source_is_read(prepared, capsys):
    folder, _ = prepared
    status, said = audit(capsys, folder)
    assert status == 0
    assert {part["id"] for line in said.out.splitlines() for part in json.loads(line)["documents"]} == {None}


def test_another_work_folder_is_refused(prepared, capsys, tmp_path):
    folder, _ = prepared
    status, said = audit(capsys, folder, "--source", str(tmp_path))
    assert (status, said.out) == (2, "")
    assert "Run `triaxial prepare` on this recipe first" in said.err

"""Run the shipped recipe for a crawl, from WET files to token files, with a quality model trained for it."""

import json
import random
from pathlib import Path

import pytest

from data_prep.documents.counts import Counts
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from launch.main import main

pytest.importorskip("isal", reason="the extra 'data' is not installed")
pytest.importorskip("mmh3", reason="the extra 'data' is not installed")

JUNK = ["buy", "click", "cheap", "login", "offer", "menu", "cart", "now", "free", "subscribe", "cookies", "share"]
QUESTION = "which of the seven old bridges did the careful surveyor measure first on that cold morning in march"


def junk(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choices(JUNK, k=60)) + f" {seed}"


def json_lines(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_shipped_recipe_makes_a_corpus(tmp_path, prose, warc_record, capsys):
    texts = {f"good{n}": prose(n, 24) for n in range(30)} | {f"junk{n}": junk(n) for n in range(30)}
    texts["leaked"] = f"{prose(50, 24)} {QUESTION} {prose(51, 24)}"
    texts["again"] = prose(3, 24) + " And one more line."
    records = [
        warc_record(text.encode(), kind="conversion", content_type="text/plain", record_id=f"urn:x:{name}")
        for name, text in texts.items()
    ]
    (tmp_path / "a.warc.wet.gz").write_bytes(b"".join(records[::2]))
    (tmp_path / "b.warc.wet.gz").write_bytes(b"".join(records[1::2]))
    good = json_lines(tmp_path / "good.jsonl", [{"text": prose(1000 + n, 24)} for n in range(60)])
    bad = json_lines(tmp_path / "bad.jsonl", [{"text": junk(1000 + n)} for n in range(60)])
    benchmark = json_lines(tmp_path / "benchmark.jsonl", [{"context": QUESTION, "completion": "the third"}])
    model = str(tmp_path / "q.safetensors")
    assert main(["prepare", "train-quality", "--positive", good, "--negative", bad, "--output", model]) == 0
    train_sentencepiece(iter(texts.values()), tmp_path / "t.model", vocab_size=400)
    words = [f'--input.paths=["{tmp_path}/*.warc.wet.gz"]', f"--output.folder={tmp_path}/corpus", "--workers", "1"]
    words += [f"--classify.model={model}", f"--tokenizer.path={tmp_path}/t.model", "--output.validation_fraction=0.2"]
    words += [f'--decontaminate.sets=[{{name = "b", paths = ["{benchmark}"], fields = ["context", "completion"]}}]']
    capsys.readouterr()
    assert main(["prepare", "crawl_gpt3", *words]) == 0
    description = json.loads((tmp_path / "corpus/corpus.json").read_text())
    steps = {step["step"]: Counts(**step) for step in description["steps"]}
    assert steps["classify"].documents_in == len(texts)
    assert steps["classify"].dropped["not_drawn"] >= 30, "a junk page stays with probability 0.002"
    assert steps["dedup_minhash"].dropped == {"near_duplicate": 1}
    assert description["decontamination"]["sets"], "the report of the cuts is part of the corpus"
    tokenizer = load_tokenizer(tmp_path / "corpus/tokenizer.model")
    kept = ""
    for split in ("train", "validation"):
        file = TokenFile(tmp_path / "corpus" / split)
        kept += tokenizer.decode(file.read(0, file.n_tokens).tolist())
    assert "surveyor" not in kept
    assert prose(50, 24)[:200] in kept, "text far from the question stays"
    assert "subscribe" not in kept
    assert "from 0.95: " in (tmp_path / "corpus/work/report.html").read_text(), "the histogram of the scores"
    assert main(["prepare", "verify", str(tmp_path / "corpus")]) == 0

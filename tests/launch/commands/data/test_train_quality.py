"""`triaxial prepare train-quality` and a recipe with its model: the same bytes for other files, orders and workers."""

import json
import random
from pathlib import Path

import pytest

from data_prep.documents.shards import read_shard
from data_prep.documents.traces import read_trace
from data_prep.execution.shard_runs import read_steps
from data_prep.filters.quality_classifier import model_digest
from launch.main import main

pytest.importorskip("isal", reason="the extra 'data' is not installed")
pytest.importorskip("mmh3", reason="the extra 'data' is not installed")

GOOD = ["theory", "valley", "river", "history", "measured", "careful", "people", "describes", "the", "of"]
BAD = ["buy", "click", "cheap", "login", "offer", "menu", "cart", "now", "free", "subscribe"]


def text(seed: int, words: list[str]) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(words if rng.random() < 0.7 else GOOD + BAD) for _ in range(60)) + "."


def write(path: Path, name: str, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"id": f"{name}{i}", "text": t}) + "\n" for i, t in enumerate(texts)))
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    good = write(folder / "good.jsonl", "g", [text(seed, GOOD) for seed in range(120)])
    bad = write(folder / "bad.jsonl", "b", [text(1000 + seed, BAD) for seed in range(120)])
    words = ["prepare", "train-quality", "--positive", good, "--negative", bad, "--held-out", "0.25", "--workers", "1"]
    assert main([*words, "--output", str(folder / "q.safetensors")]) == 0
    return folder


def test_a_model_is_trained_reported_and_reproduced(trained, tmp_path, capsys):
    report = json.loads((trained / "q.json").read_text())
    assert report["held_out"]["f1"] > 0.95
    assert report["data"]["positive"]["documents"] + report["data"]["positive"]["held_out"] == 120
    # The corpora in other files, order and with two workers.
    lines = (trained / "good.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "one.jsonl").write_text("".join(lines[:50:-1]))
    (tmp_path / "two.jsonl").write_text("".join(lines[:51]))
    words = ["prepare", "train-quality", f"--positive={tmp_path}/*.jsonl", "--negative", str(trained / "bad.jsonl")]
    assert main([*words, "--held-out", "0.25", "--workers", "2", "--output", str(tmp_path / "q.safetensors")]) == 0
    assert (tmp_path / "q.safetensors").read_bytes() == (trained / "q.safetensors").read_bytes()
    assert (tmp_path / "q.json").read_bytes() == (trained / "q.json").read_bytes()
    shown = capsys.readouterr().out
    held = report["held_out"]
    assert f"precision {held['precision']:.4f}, recall {held['recall']:.4f}, F1 {held['f1']:.4f}" in shown
    assert f"keeps {100 * held['positive']['kept_by_pareto']:.2f}% of the positive" in shown
    assert model_digest(trained / "q.safetensors") in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--positive", "gone.jsonl"], "--positive: no file matches 'gone.jsonl'"),
        (["--positive", "{trained}/bad.jsonl"], "is given as --positive and as --negative"),
        (["--l2", "-1"], "--l2 -1.0 is invalid: must be at least 0"),
        (["--output", "{trained}/q.npz"], "must end in .safetensors"),
        (["--extract.main_contents", "x"], "unknown key 'main_contents'; did you mean 'main_content'?"),
        (["--max-documents", "1"], "--max-documents 1 is invalid: must be at least 2"),
        (["--text-field", "body"], "step 'read' left none of its 120 documents (dropped: malformed 120)"),
    ],
)
def test_mistakes_are_one_line(trained, tmp_path, capsys, words, message):
    usual = {
        "--positive": "{trained}/good.jsonl",
        "--negative": "{trained}/bad.jsonl",
        "--output": f"{tmp_path}/q.safetensors",
    }
    given = [word for pair in usual.items() if pair[0] not in words for word in pair]
    words = [word.format(trained=trained) for word in [*given, "--workers", "1", *words]]
    assert main(["prepare", "train-quality", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "q.safetensors").exists()


def test_a_recipe_scores_keeps_and_masks(trained, tmp_path, capsys):
    texts = [text(5000 + seed, GOOD if seed % 2 else BAD) + f" Mail me{seed}@host.org now." for seed in range(200)]
    write(tmp_path / "all.jsonl", "d", texts)
    write(tmp_path / "first.jsonl", "d", texts[:90])
    lines = (tmp_path / "all.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "first.jsonl").write_text("".join(lines[:90]))
    (tmp_path / "last.jsonl").write_text("".join(lines[90:]))
    files = ("train.bin", "train.idx", "validation.bin", "validation.idx", "tokenizer.model")
    kept = {}
    for name, paths, workers in (("one", "all", 1), ("two", "[fl]*st", 2)):
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(
            f"""
            input.paths = ["{tmp_path}/{paths}.jsonl"]
            output = {{ folder = "{tmp_path}/{name}", validation_fraction = 0.2 }}
            tokenizer.vocab_size = 300
            language.enabled = false
            quality.rules = []
            dedup_minhash.enabled = false
            classify.model = "{trained}/q.safetensors"
            pii.enabled = true
            """
        )
        assert main(["prepare", str(recipe), "--workers", str(workers)]) == 0
        (step,) = [step for step in read_steps(tmp_path / name / "work").done if step.stage == "classify"]
        shards = [d for path in step.shards(tmp_path / name / "work") for d in read_shard(path)]
        kept[name] = {d.id: d.metadata["quality_score"] for d in shards}
        drops = [d for path in step.traces(tmp_path / name / "work") for d in read_trace(path)]
        assert {drop.reason for drop in drops} == {"not_drawn"}
        assert len(drops) + len(shards) == 200
    assert kept["one"] == kept["two"]
    good = sum(int(name[1:]) % 2 for name in kept["one"])
    assert good > 60, "most of the good ones"
    assert len(kept["one"]) - good < 20, "few of the others"
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    shown = capsys.readouterr().out
    assert f"pii: {len(kept['one'])} of kind email masked" in shown
    description = json.loads((tmp_path / "one/corpus.json").read_text())
    assert description["recipe"]["classify"]["model_sha256"] == model_digest(trained / "q.safetensors")
    assert [step["step"] for step in description["steps"]] == [
        "read",
        "extract",
        "classify",
        "dedup_exact",
        "pii",
        "tokenize",
    ]

    manifest = (tmp_path / "one/work/manifest.jsonl").read_bytes()
    assert main(["prepare", str(tmp_path / "one.toml"), "--classify.alpha", "9"]) == 0
    assert (tmp_path / "one/work/manifest.jsonl").read_bytes() == manifest, "the same settings are the same tasks"
    assert main(["prepare", str(tmp_path / "one.toml"), "--classify.model", str(trained / "good.jsonl")]) == 2
    assert "is not a quality model" in capsys.readouterr().err

"""A run with `objective.pool = "attention"`: trained, scored by command, in windows, exported; never refitted."""

import json

import numpy as np
import pytest
import torch
from served import served

from launch.main import main
from launch.moderation.export import TOLERANCE
from launch.moderation.open_run import load_classifier

QUERIES = 3


@pytest.fixture(scope="module")
def run(classifier_runs, tiny_corpus, tmp_path_factory):
    words = ["--objective.pool", "attention", "--objective.queries", str(QUERIES), "--train.evaluate_every_steps", "20"]
    return classifier_runs.make_classifier_run(tiny_corpus, tmp_path_factory.mktemp("attention"), *words)


@pytest.fixture(scope="module")
def linear_run(classifier_runs, tiny_corpus, tmp_path_factory):
    words = ["--objective.pool", "attention", "--objective.head", "linear", "--train.total_steps", "12"]
    return classifier_runs.make_classifier_run(tiny_corpus, tmp_path_factory.mktemp("linear"), *words)


def texts_of(run):
    return [json.loads(line)["text"] for line in (run.folder / "validation.jsonl").read_text().splitlines()]


def alone(classifier, texts, *, queries=QUERIES):
    """Probabilities (n, c) by a forward pass of each text alone in float64 and a plain softmax over its tokens."""
    module, found = classifier.run.engine.module.double(), []
    for text in texts:
        ids = [*classifier.run.tokenizer.encode(text), classifier.run.tokenizer.end_of_document_id]
        with torch.inference_mode():
            outputs = module(torch.tensor([ids]))[0]  # (t, q + q * c)
        weights, values = outputs[:, :queries].softmax(0), outputs[:, queries:].unflatten(-1, (queries, -1))
        logits = (weights.unsqueeze(-1) * values).sum((0, 1))
        logits[0] = logits[:2].max()  # F is the parent of F2
        found.append(torch.sigmoid(logits).numpy())
    module.float()
    return np.array(found)


def test_the_command_gives_the_scores_of_each_text_alone(run, tmp_path):
    """Tolerance 2e-6: fp32 against float64. The labels are learnt: F is an example of fruit in three of four texts."""
    output = tmp_path / "scores.jsonl"
    assert main(["moderate", "score", str(run.run), str(run.folder / "validation.jsonl"), "--output", str(output)]) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    found = np.array([list(record["scores"].values()) for record in records])
    classifier = load_classifier(run.run)
    np.testing.assert_allclose(found, alone(classifier, texts_of(run)), atol=2e-6)
    np.testing.assert_allclose(found, classifier.scores(texts_of(run)), atol=2e-6)
    labels = [json.loads(line)["labels"]["F"] for line in (run.folder / "validation.jsonl").read_text().splitlines()]
    positive, negative = ([p for p, label in zip(found[:, 0], labels, strict=True) if label == y] for y in (1, 0))
    assert min(len(positive), len(negative)) > 10
    assert np.mean(positive) > np.mean(negative) + 0.3


def test_a_server_gives_the_same_scores(run):
    """Tolerance 2e-6."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed; it comes with the extra 'serve'")
    texts = texts_of(run)[:5]
    with served(["-m", "launch.main", "moderate", "serve", run.run, "--port", 0]) as server:
        status, answer, _ = server.ask("/v1/moderations", {"input": texts})
    assert status == 200
    found = [list(one["category_scores"].values()) for one in answer["results"]]
    np.testing.assert_allclose(found, load_classifier(run.run).scores(texts), atol=2e-6)


def test_an_evaluation_has_the_loss_of_each_category(run):
    rows = [json.loads(line) for line in (run.run / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if "validation/validation/loss_F2" in row]
    assert len(found) >= 2
    for name in ("loss", "loss_F", "loss_F2", "loss_T"):
        assert found[-1][f"validation/validation/{name}"] < found[0][f"validation/validation/{name}"]


def test_a_long_text_has_the_largest_scores_of_its_windows(run):
    classifier = load_classifier(run.run, window=16)
    tokenizer = classifier.run.tokenizer
    ids = np.array(tokenizer.encode(" ".join(texts_of(run)[:6])))
    starts = [*range(0, len(ids) - 15, 12), len(ids) - 15]
    parts = [classifier.scores_of([ids[start : start + 15]])[0] for start in starts]
    np.testing.assert_allclose(classifier.scores_of([ids])[0], np.max(parts, axis=0), atol=2e-6)


@pytest.mark.parametrize("kind", ["run", "linear_run"])
def test_transformers_gives_the_same_scores(kind, request, tmp_path, capsys):
    """Tolerance 1e-5, in a padded batch. Without --with-code one line says why not."""
    transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
    made, folder = request.getfixturevalue(kind), tmp_path / "folder"
    command = ["moderate", "export", str(made.run), "--to", str(folder)]
    assert main(command) == 2
    error = capsys.readouterr().err
    if kind == "linear_run":
        assert "they read a text's last token alone (objective.pool = 'attention'). Add --with-code" in error
    assert main([*command, "--with-code"]) == 0
    options = {"trust_remote_code": True, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    texts = texts_of(made)[:30]
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    wanted = load_classifier(made.run).scores(texts)
    np.testing.assert_allclose(torch.sigmoid(logits).numpy(), wanted, atol=TOLERANCE)
    assert "pool: attention" in (folder / "README.md").read_text()


def test_onnxruntime_gives_the_same_scores(run, tmp_path):
    """Tolerance 1e-5, in a padded batch."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="the extra 'onnx' is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    path = tmp_path / "model.onnx"
    assert main(["moderate", "export", str(run.run), "--onnx", str(path)]) == 0
    classifier = load_classifier(run.run)
    texts = texts_of(run)[:9]
    rows = [[*classifier.run.tokenizer.encode(text), classifier.run.tokenizer.end_of_document_id] for text in texts]
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    (found,) = runtime.InferenceSession(str(path)).run(None, {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(found, classifier.scores(texts), atol=TOLERANCE)


def test_heads_are_not_fitted_to_features(linear_run, capsys):
    words = ["moderate", "heads", str(linear_run.run), "--labels", str(linear_run.folder / "train.jsonl")]
    assert main(words) == 2
    assert "objective.pool = 'attention' is invalid here" in capsys.readouterr().err


def test_a_dry_run_counts_the_head_on_the_last_pipeline_rank(run, tmp_path):
    """8 queries of 3 categories on width 32, with MLPs of 16: 8 * 32 scores and 7 * 3 * (16 + 1) further values."""
    parameters = {}
    for pool in ("last", "attention"):
        words = ["--objective.pool", pool, "--dry-run", "--ranks", "2", "--parallel.pipeline", "2", "--rank", "1"]
        assert main(["train", str(run.folder / "recipe.toml"), *words, "--json", str(tmp_path / f"{pool}.json")]) == 0
        (rank,) = json.loads((tmp_path / f"{pool}.json").read_text())["ranks"]
        parameters[pool] = rank["parameters"]
    assert parameters["attention"] - parameters["last"] == 8 * 32 + 7 * 3 * (16 + 1)


def test_wrong_values_are_refused_with_one_line(run, capsys):
    for words, message in (
        (["--objective.pool", "attention", "--objective.queries", "0"], "objective.queries = 0 is invalid: must be at"),
        (["--objective.queries", "8"], "objective.queries = 8 is invalid with objective.pool = 'last': only attention"),
    ):
        assert main(["train", str(run.folder / "recipe.toml"), "--run.directory", str(run.folder / "new"), *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1

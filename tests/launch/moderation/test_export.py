"""transformers loads exported classifiers and gives our scores; what it cannot express is refused or brings code."""

import json
import shutil

import numpy as np
import pytest
import torch

from launch.main import main
from launch.moderation.card import model_card
from launch.moderation.export import TOLERANCE
from launch.moderation.open_run import load_classifier

transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
LLAMA = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": "false"}


def export(run, folder, *words):
    return main(["moderate", "export", str(run), "--to", str(folder), *words])


def difference(classifier, folder, texts, *, code):
    """The largest difference between sigmoid(logits) of transformers, in one padded batch, and our scores."""
    options = {"trust_remote_code": code, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    assert model.config.problem_type == "multi_label_classification"
    assert [model.config.id2label[i] for i in range(3)] == list(classifier.categories)
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return np.abs(torch.sigmoid(logits).numpy() - classifier.scores(texts)).max()


@pytest.fixture(scope="module")
def texts(classifier_run):
    lines = (classifier_run.folder / "validation.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_a_linear_head_on_gpt2_needs_no_code(classifier_runs, tiny_corpus, texts, tmp_path):
    """The bias is folded into the last norm. Tolerance 1e-5."""
    words = ["--objective.head", "linear", "--objective.parents", "false", "--train.total_steps", "6"]
    made = classifier_runs.make_classifier_run(tiny_corpus, tmp_path, *words)
    assert export(made.run, tmp_path / "folder") == 0
    classifier = load_classifier(made.run)
    assert bool(classifier.run.engine.module.head.classes.bias.any())
    assert difference(classifier, tmp_path / "folder", texts, code=False) < TOLERANCE
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    assert config["triaxial"]["version"] == classifier.version
    assert not list((tmp_path / "folder").glob("*.py"))


def test_a_shared_mlp_on_llama_brings_its_code(classifier_runs, tiny_corpus, texts, tmp_path, capsys):
    """Tolerance 1e-5."""
    model = [word for key, value in LLAMA.items() for word in (f"--model.{key}", value)]
    words = [*model, "--objective.head", "shared_mlp", "--objective.pool", "mean", "--train.total_steps", "3"]
    made = classifier_runs.make_classifier_run(tiny_corpus, tmp_path, *words)
    assert export(made.run, tmp_path / "folder") == 2
    assert "they have no MLP at the end (objective.head = 'shared_mlp'). Add --with-code" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()
    assert export(made.run, tmp_path / "folder", "--with-code") == 0
    assert difference(load_classifier(made.run), tmp_path / "folder", texts, code=True) < TOLERANCE


CALIBRATION = {
    "F": {"kind": "temperature", "temperature": 3.0},
    "T": {"kind": "isotonic", "x": [0.1, 0.4, 0.40001, 0.9], "y": [0.0, 0.2, 0.7, 1.0]},
}


def test_long_texts_and_calibration_are_those_of_the_run(classifier_run, texts, tmp_path, capsys):
    """Windows, calibration and the parents' maximum after it. Tolerance 1e-5; 0.5 in the steep piece of T."""
    run = tmp_path / "run"
    shutil.copytree(classifier_run.run, run)
    (run / "moderation").mkdir()
    (run / "moderation" / "calibration.json").write_text(json.dumps(CALIBRATION))
    classifier = load_classifier(run)
    long = [" ".join(texts[start : start + 30]) for start in (0, 30)] + texts[:5]
    assert classifier.n_windows(classifier.encoded(long))[0] > 2
    wanted = classifier.scores(long)
    assert (wanted[:, 0] >= wanted[:, 1]).all()
    assert export(run, tmp_path / "folder", "--with-code") == 0
    assert "are calibrated as the run's" in capsys.readouterr().out
    assert difference(classifier, tmp_path / "folder", long, code=True) < TOLERANCE
    values = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert values["window"] == classifier.window == 64


def test_a_temperature_is_folded_into_a_linear_head_and_a_curve_is_not(
    classifier_runs, tiny_corpus, texts, tmp_path, capsys
):
    """Tolerance 1e-5."""
    words = ["--objective.head", "linear", "--objective.parents", "false", "--train.total_steps", "6"]
    made = classifier_runs.make_classifier_run(tiny_corpus, tmp_path, *words)
    path = made.run / "moderation" / "calibration.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"F2": CALIBRATION["F"]}))
    assert export(made.run, tmp_path / "folder") == 0
    assert difference(load_classifier(made.run), tmp_path / "folder", texts, code=False) < TOLERANCE
    path.write_text(json.dumps({"F2": CALIBRATION["T"]}))
    assert export(made.run, tmp_path / "other") == 2
    assert "they cannot follow an isotonic calibration" in capsys.readouterr().err


def test_mlps_of_each_category_and_the_card(classifier_run, texts, tmp_path, capsys):
    """Tolerance 1e-5."""
    assert export(classifier_run.run, tmp_path / "folder", "--with-code") == 0
    assert "verified: probabilities of" in capsys.readouterr().out
    classifier = load_classifier(classifier_run.run)
    assert difference(classifier, tmp_path / "folder", texts, code=True) < TOLERANCE
    card = (tmp_path / "folder" / "README.md").read_text()
    assert card == model_card(classifier)
    for part in (
        classifier.version,
        "| F2 | rotten fruit | F |",
        "| train | train | 400 |",
        "| validation | loss |",
    ):
        assert part in card
    assert "apple" not in card
    assert export(classifier_run.run, tmp_path / "folder", "--with-code") == 2
    assert "exists already" in capsys.readouterr().err

"""An ONNX file gives our scores in onnxruntime, for batches of any size. Tolerance 1e-5."""

import json
import shutil

import numpy as np
import pytest

from launch.main import main
from launch.moderation.export import TOLERANCE
from launch.moderation.open_run import load_classifier

for package in ("onnx", "onnxscript"):
    pytest.importorskip(package, reason="the extra 'onnx' is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")


def test_calibration_is_in_the_file(classifier_run, tmp_path):
    """A temperature, a curve, and the parents' maximum after them. Tolerance 1e-5."""
    run, path = tmp_path / "run", tmp_path / "model.onnx"
    shutil.copytree(classifier_run.run, run)
    (run / "moderation").mkdir()
    calibration = {
        "F": {"kind": "temperature", "temperature": 3.0},
        "T": {"kind": "isotonic", "x": [0.1, 0.4, 0.9], "y": [0.0, 0.7, 1.0]},
    }
    (run / "moderation" / "calibration.json").write_text(json.dumps(calibration))
    assert main(["moderate", "export", str(run), "--onnx", str(path)]) == 0
    classifier = load_classifier(run)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.array(
        [[*classifier.run.tokenizer.encode("the rotten apple"), classifier.run.tokenizer.end_of_document_id]]
    )
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    np.testing.assert_allclose(found, classifier.scores(["the rotten apple"]), atol=TOLERANCE)
    assert found[0, 0] >= found[0, 1]


def test_onnxruntime_gives_our_scores(classifier_run, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    assert main(["moderate", "export", str(classifier_run.run), "--onnx", str(path)]) == 0
    classifier = load_classifier(classifier_run.run)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    texts = ["the rotten apple", "a hammer", "an old house in town and a pear"]
    rows = [[*classifier.run.tokenizer.encode(text), classifier.run.tokenizer.end_of_document_id] for text in texts]
    ids = np.zeros((3, max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(found, classifier.scores(texts), atol=TOLERANCE)
    assert session.get_modelmeta().custom_metadata_map["version"] == classifier.version
    assert main(["moderate", "export", str(classifier_run.run), "--onnx", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err

"""`triaxial evaluate --truthful-qa` with a real model: MC1 and MC2 by hand from the log-probabilities."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.errors import ConfigError
from launch.evaluation.truthful_qa import make_truthful_qa
from launch.main import main

ONE = {"choices": ["Yes it is.", "No.", "Never."], "labels": [0, 1, 0]}
ROWS: list[dict[str, Any]] = [
    {"question": "Is it?", "mc1_targets": ONE, "mc2_targets": {**ONE, "labels": [0, 1, 1]}},
    {"question": "Was it?", "mc1_targets": ONE, "mc2_targets": ONE},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_mc1_and_mc2_are_those_of_the_log_probabilities(made: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    words = [
        "evaluate",
        str(made.directory),
        "--truthful-qa",
        str(write(tmp_path / "q.jsonl", ROWS)),
        "--device",
        "cpu",
    ]
    words += ["--log-samples", str(tmp_path / "samples"), "--json", str(tmp_path / "r.json")]
    assert main(words) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    scores = {score["task"]: score["value"] for score in report["few_shot"]}
    assert scores.keys() == {"truthful_qa_mc1", "truthful_qa_mc2"}
    for name, key in (("truthful_qa_mc1", "mc1"), ("truthful_qa_mc2", "mc2")):
        expected = []
        file = tmp_path / "samples" / f"{name}_0-shot.jsonl"
        for sample in map(json.loads, file.read_text().splitlines()):
            log_probs = np.array([float(response[0][0]) for response in sample["resps"]])
            labels = np.array(sample["doc"][f"{key}_labels"], dtype=float)
            shares = np.exp(log_probs - log_probs.max())
            expected.append(labels[log_probs.argmax()] if key == "mc1" else (shares @ labels) / shares.sum())
        assert scores[name] == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mc2_targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "line 2: 'mc2_targets' must have 'choices'"),
        ({"mc2_targets": {"choices": ["a", "b"], "labels": [[1], [0]]}}, "line 2: 'mc2_targets' must have 'choices'"),
        ({"mc1_targets": {"choices": ["a"], "labels": [1]}}, "line 2: 'mc1_targets' must have 'choices'"),
        ({"mc1_targets": None}, "line 2: 'mc1_targets' must have 'choices'"),
        ({"question": " "}, "line 2 has no text 'question'"),
    ],
)
def test_another_form_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_truthful_qa(write(tmp_path / "q.jsonl", [ROWS[0], ROWS[1] | change]))


def test_an_empty_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is empty\. Give one question a line"):
        make_truthful_qa(write(tmp_path / "q.jsonl", []))

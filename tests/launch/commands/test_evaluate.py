"""`triaxial evaluate` on a run directory as training leaves it: its report, its tables, and what it refuses."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt.errors import ConfigError
from launch.main import main


def test_evaluate_reports_loss_entropy_and_scores(
    made: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, triaxial: Any
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    report_file = tmp_path / "report.json"
    words = ["--limit", 2, "--num-fewshot", 1, "--tasks", "gpt3_two_digit_addition", "gpt3_reversed_words"]
    assert triaxial("evaluate", made.directory, *words, "--json", report_file) == 0
    printed = capsys.readouterr().out
    report = json.loads(report_file.read_text())
    tokens = {"first": made.validation * 2, "second": made.validation}
    pooled: list[int] = []
    total = 0.0
    for name, ids in tokens.items():
        n = (len(ids) - 1) // 32 * 32
        windows = np.stack([np.array(ids[i : i + 33]) for i in range(0, n, 32)])
        log_probs = made.models[20](torch.from_numpy(windows[:, :-1])).log_softmax(-1)
        loss = -float(log_probs.gather(2, torch.from_numpy(windows[:, 1:, None])).mean())
        found = report["validation"][name]
        assert found["tokens"] == n
        assert found["loss_nats"] == pytest.approx(loss, rel=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-3)
        total += loss * n
        pooled += ids[1 : n + 1]
    share = np.bincount(pooled) / len(pooled)
    entropy = -float(np.sum(share[share > 0] * np.log(share[share > 0])))
    assert report["validation_tokens"] == len(pooled)
    assert report["validation_loss_nats"] == pytest.approx(total / len(pooled), rel=1e-4)
    assert report["unigram_entropy_nats"] == pytest.approx(entropy)
    assert [(s["label"], s["shots"], s["items"]) for s in report["few_shot"]] == [("2D+", 1, 2), ("RW", 1, 2)]
    assert report["words"]["source"] == "pydoc_data.topics"
    assert (report["step"], report["parameters"]) == (20, made.models[20].vocab_size * 32 + 64 * 32 + 2 * 12704 + 64)
    assert f"{report['validation']['first']['loss_nats']:.4f}" in printed
    assert "gpt3_two_digit_addition" in printed
    assert [path.name for path in report_file.parent.iterdir()] == ["report.json"]


def test_evaluate_without_tasks_on_a_part_of_the_validation_corpora(
    made: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, triaxial: Any
) -> None:
    words = ["--tasks", "none", "--max-validation-tokens", 100, "--json", tmp_path / "r.json"]
    triaxial("evaluate", made.directory, *words)
    report = json.loads((tmp_path / "r.json").read_text())
    assert {name: found["tokens"] for name, found in report["validation"].items()} == {"first": 96, "second": 96}
    assert "few_shot" not in report


def test_evaluate_on_the_clean_subset_of_prepare_overlap(
    made: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, triaxial: Any
) -> None:
    """Some published problems occur in a text. The evaluation takes the file of the analysis unchanged."""
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    pytest.importorskip("xxhash", reason="needs the extra 'data'")
    sums = [(a, b) for a in range(10, 14) for b in range(50, 60)]
    rows = [{"context": f"\n\nQ: What is {a} plus {b}?\n\nA:", "completion": f" {a + b}"} for a, b in sums]
    (tmp_path / "two_digit_addition.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    leaked = "and then she asked, Q: What is 11 plus 53? A: 64. Nobody asked q what is 12 plus 50, a 62 he said"
    (tmp_path / "corpus.txt").write_text(leaked + "\nand a line of other words\n")
    (tmp_path / "overlap.toml").write_text(
        f"""training.paths = ["{tmp_path}/corpus.txt"]
output.folder = "{tmp_path}/overlap"
[[overlap.sets]]
name = "gpt3_two_digit_addition"
paths = ["{tmp_path}/two_digit_addition.jsonl"]
fields = ["context", "completion"]
synthetic = true
"""
    )
    assert main(["prepare", "overlap", str(tmp_path / "overlap.toml"), "--workers", "1"]) == 0
    capsys.readouterr()
    words = ["--tasks", "gpt3_two_digit_addition", "--num-fewshot", "0", "paper", "--gpt3-data", tmp_path]
    words += ["--clean-subset", tmp_path / "overlap" / "examples.jsonl", "--max-validation-tokens", 64]
    words += ["--answers", "likelihood", "--json", tmp_path / "report.json"]
    with pytest.raises(
        ConfigError, match="--num-fewshot 50 is invalid: gpt3_two_digit_addition has 4 problems for examples"
    ):
        triaxial("evaluate", made.directory, *words)
    words.remove("paper")
    assert triaxial("evaluate", made.directory, *words) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    accuracy, likelihood = report["few_shot"]
    assert [accuracy[key] for key in ("metric", "items", "clean_items", "dirty_items")] == ["acc", 36, 34, 2]
    total = likelihood["clean_value"] * 34 + likelihood["dirty_value"] * 2
    assert likelihood["value"] == pytest.approx(total / 36)
    assert likelihood["clean_standard_error"] > 0
    assert report["gpt3_data"] == str(tmp_path)
    assert re.search(r"clean +34 +-\d+\.\d{4} ± \d", printed)
    assert f"{likelihood['dirty_value']:.4f}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "none", "gpt3"], "'none' excludes other tasks"),
        (
            ["--tasks", "none", "--num-fewshot", "x"],
            "--num-fewshot x is invalid without few-shot tasks: name some with",
        ),
        (["--num-fewshot", "one"], "--num-fewshot one is invalid: use whole numbers, or paper"),
        (
            ["--num-fewshot", "201"],
            "--num-fewshot 201 is invalid: gpt3_two_digit_addition has 200 problems for examples",
        ),
        (["--gpt3-data", "/nowhere"], "--gpt3-data /nowhere is not a folder"),
        (["--normalise", "length"], "--normalise length is invalid: the rules are tokens and answer"),
        (["--clean-subset", "/nowhere"], "--clean-subset is invalid for generated problems"),
        (["--batch-tokens", "0"], "--batch-tokens 0"),
        (["--max-validation-tokens", "0"], "--max-validation-tokens 0"),
        (["--json", "/proc/none/report.json"], "--json /proc/none/report.json cannot be written: no such folder"),
        (["--words", "/nowhere/words"], "--words /nowhere/words cannot be read"),
        (["--step", "3"], "There are: 10, 20"),
        (["--include-path", "/nowhere", "--tasks", "own"], "--include-path /nowhere is no folder"),
        (["--log-samples", "/proc/none/samples"], "--log-samples /proc/none/samples cannot be made"),
    ],
)
def test_evaluate_refuses_impossible_options(
    made: Any, words: list[str], message: str, capsys: pytest.CaptureFixture[str], triaxial: Any
) -> None:
    with pytest.raises(ConfigError, match=message):
        triaxial("evaluate", made.directory, *words)
    assert capsys.readouterr().out == ""

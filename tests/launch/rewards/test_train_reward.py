"""Reward runs resume with the same bits, and `triaxial parity` compares their layouts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.main import main
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.load import read_tensors


def everything(run: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of the newest checkpoint."""
    checkpoint, _ = find_latest(run / "checkpoints")
    assert checkpoint is not None
    return dict(read_tensors(checkpoint, list(checkpoint.index)))


def test_a_run_resumes_with_the_same_bits(reward_run: Any, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    words = ["--train.total_steps", "4", "--checkpoint.every_steps", "2", "--train.evaluate_every_steps", "2"]
    words = ["train", str(reward_run.folder / "recipe.toml"), *words]
    assert main([*words, "--run.directory", str(whole)]) == 0
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000000004")
    assert main([*words, "--run.directory", str(resumed), "--resume"]) == 0
    expected, found = everything(whole), everything(resumed)
    assert expected.keys() == found.keys()
    assert any("head.value" in key for key in expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    events = (resumed / "events.jsonl").read_text()
    assert "resumed from" in events
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, resumed)
    ]
    losses = [[line["loss"] for line in of_run if "loss" in line][-2:] for of_run in lines]
    assert losses[0] == losses[1]


@pytest.mark.timeout(300)
def test_parity_compares_loss_and_gradients(reward_run: Any, tmp_path: Path) -> None:
    words = ["--layout", "tensor=2", "--steps", "2", "--tolerance", "1e-5", "--gradient-tolerance", "1e-5"]
    recipe = str(reward_run.folder / "recipe.toml")
    assert main(["parity", recipe, *words, "--no-page", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "parity.json").read_text())
    assert found["passed"]
    gradients = json.dumps(found)
    assert "head.value.weight" in gradients

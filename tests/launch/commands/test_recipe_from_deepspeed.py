"""`triaxial recipe from-deepspeed` as users run it."""

import json
from pathlib import Path

import pytest

from launch.main import main

WHOLE = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-4}},
    "zero_optimization": {"stage": 2},
}
GIVEN = [
    "--model.vocab_size",
    "100",
    "--model.n_ctx",
    "8",
    "--model.n_layers",
    "1",
    "--model.d_model",
    "8",
    "--model.n_heads",
    "2",
]
GIVEN += ["--data.tokenizer", "t", "--data.train", '[{ path = "c" }]', "--data.seq_len", "8"]
GIVEN += ["--train.total_tokens", "4096"]


def test_the_command_prints_a_recipe_that_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(WHOLE))
    assert main(["recipe", "from-deepspeed", str(tmp_path / "ds.json"), *GIVEN]) == 0
    (tmp_path / "recipe.toml").write_text(capsys.readouterr().out)
    assert main(["config", str(tmp_path / "recipe.toml")]) == 0
    assert main(["recipe", "from-deepspeed", str(tmp_path / "missing.json")]) == 2
    (tmp_path / "bad.json").write_text("[1]")
    assert main(["recipe", "from-deepspeed", str(tmp_path / "bad.json")]) == 2
    assert "bad.json is not a JSON object" in capsys.readouterr().err

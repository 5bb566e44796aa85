"""`triaxial convert --dry-run` reports sizes of every kind of source and writes nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.convert.hugging_face.config import config_json
from launch.main import main


def dry_run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["convert", *map(str, words), "--dry-run"]) == 0
    return capsys.readouterr().out


def test_the_largest_recipe_is_sized_for_both_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = dry_run(capsys, "gpt3_175b", "--to", "hf", "--output", tmp_path / "x")
    assert re.search(r"GPT-2 architecture, 17[45],", out), out
    assert "disk space:" in out
    assert "logits: not compared" in out
    out = dry_run(capsys, "gpt3_175b", "--to", "megatron", "--output", tmp_path / "x")
    assert re.search("Megatron's GPTModel architecture, 17[45],", out), out
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_source_is_sized(
    tmp_path: Path, exported: Path, megatron_runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = megatron_runs.LLAMA_LIKE
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json(config, dtype=torch.bfloat16)))
    plain = tmp_path / "plain"
    assert main(["convert", str(exported / "llama"), "--to", "safetensors", "--output", str(plain)]) == 0
    capsys.readouterr()
    for source, dtype in (
        (folder, "bfloat16"),
        (plain, "float32"),
        (exported / "llama", "float32"),
        (exported / "llama-megatron", "float32"),
    ):
        out = dry_run(capsys, source, "--to", "triaxial")
        assert f"{config.parameters:,} parameters" in out
        assert re.search(rf"reads [\d,]+ bytes in {dtype}; writes [\d,]+ bytes in float32, 1 files", out), out
    assert "logits not compared" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "plain"]


def test_a_source_that_is_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "gone"), "--to", "hf", "--dry-run"]) == 2
    assert "is not a run directory, a Hugging Face folder or a recipe" in capsys.readouterr().err

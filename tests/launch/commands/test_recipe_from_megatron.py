"""`triaxial recipe from-megatron` as users run it."""

from pathlib import Path

import pytest
from megatron_commands import PLAIN

from launch.main import main

WORDS = PLAIN.replace("--tokenizer-model t ", "").split()


def test_the_command_takes_any_flag_and_the_recipe_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--version-of-mine", "--help-me", "-1"]
    assert main(["recipe", "from-megatron", *words, "--data.tokenizer", "given.model"]) == 0
    (tmp_path / "recipe.toml").write_text(capsys.readouterr().out)
    assert main(["config", str(tmp_path / "recipe.toml")]) == 0
    assert "given.model" in capsys.readouterr().out
    assert main(["recipe", "from-megatron", "--help"]) == 0
    assert "flags of pretrain_gpt.py" in capsys.readouterr().out
    assert main(["recipe", "from-megatron"]) == 2
    assert main(["recipe", "from-megatron", "12"]) == 2
    assert "'12' is invalid: it follows no flag" in capsys.readouterr().err


def test_the_command_of_the_guide_gives_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    guide = Path(__file__).resolve().parents[3] / "docs" / "guides" / "training" / "engines.md"
    command = guide.read_text().split("    triaxial recipe from-megatron ")[1].split("> recipe.toml")[0]
    assert main(["recipe", "from-megatron", *command.replace("\\\n", " ").split()]) == 0
    assert "To fill in: data.tokenizer." in capsys.readouterr().out

"""`triaxial config` in a separate process, and the page of settings."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from launch.commands.config import page

ROOT = Path(__file__).resolve().parents[3]


def config(*words):
    command = [sys.executable, "-m", "launch.main", "config", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_page_of_settings_is_that_of_the_sources():
    assert (ROOT / "docs" / "settings.md").read_text() == page() + "\n", (
        "run: triaxial config --keys --markdown > docs/settings.md"
    )


@pytest.mark.parametrize("recipe", ["demo", "demo_corpus"])
def test_a_resolved_recipe_is_a_recipe_and_names_the_origin_of_each_value(recipe, tmp_path):
    override = ["--run.seed", "7"] if recipe == "demo" else ["--output.seed", "7"]
    shown = config(recipe, *override)
    assert shown.returncode == 0, shown.stderr
    assert "\nseed = 7  # command line\n" in shown.stdout
    assert "  # recipe\n" in shown.stdout
    assert "  # default\n" in shown.stdout
    (tmp_path / "again.toml").write_text(shown.stdout)
    again = config(str(tmp_path / "again.toml"))
    assert again.returncode == 0, again.stderr
    assert tomllib.loads(again.stdout) == tomllib.loads(shown.stdout)


def test_values_of_rules_and_lengths_in_steps_have_their_origin(tmp_path):
    text = (ROOT / "launch/recipes/demo.toml").read_text()
    for line in ("learning_rate = 2e-3", "warmup_tokens = 40_000", "decay_tokens = 600_000"):
        text = text.replace(line, "")
    (tmp_path / "short.toml").write_text(text)
    shown = config(str(tmp_path / "short.toml"), "--train.total_steps", "300").stdout
    assert "total_tokens = 614_400  # train.total_steps = 300\n" in shown
    assert "learning_rate = 0.0021  # rule: the model's parameters\n" in shown
    assert "decay_tokens = 614_400  # rule: train.total_tokens\n" in shown
    assert "warmup_tokens = 12_288  # rule: 2% of the decay, at most 375M\n" in shown


def test_one_section_is_shown_and_an_unknown_one_is_named():
    shown = config("--keys", "optimizer").stdout
    assert "triaxial train: [optimizer]" in shown
    assert "optimizer.learning_rate" in shown
    wrong = config("--keys", "optimiser")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--keys optimiser is invalid: unknown section 'optimiser'; did you mean 'optimizer'?" in wrong.stderr


def test_the_kind_of_a_recipe_is_seen_from_its_sections(tmp_path):
    (tmp_path / "no_input.toml").write_text("[output]\nfolder = 'corpus'\n")
    assert "input" in config(str(tmp_path / "no_input.toml")).stderr
    other = config("mixture_gpt3")
    assert other.returncode == 2
    assert "mixture_gpt3 is a recipe of `triaxial data mixture`" in other.stderr


def test_missing_keys_are_named_at_once(tmp_path):
    (tmp_path / "short.toml").write_text("[run]\n[model]\nn_ctx = 8\n[data]\ntrain = [{ weight = 2 }]\n")
    missing = config(str(tmp_path / "short.toml"))
    assert missing.returncode == 2
    assert len(missing.stderr.splitlines()) == 1
    for key in ("run.directory", "model.d_model", "data.train[0].path", "data.seq_len", "batch.micro_batch_size"):
        assert f" {key} (" in missing.stderr

"""An error about missing token files says how they are made."""

import tomllib
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.token_files.corpus import open_tokens
from launch.config.corpora import maker_of, naming_the_maker
from launch.config.recipe import find_recipe
from launch.main import main


def test_the_corpus_of_a_shipped_recipe_has_a_command():
    folder = tomllib.loads(find_recipe("demo_corpus").read_text())["output"]["folder"]
    assert maker_of(Path(folder) / "train") == "`triaxial prepare demo_corpus` makes them"


def test_any_other_corpus_has_a_page_that_exists():
    said = maker_of(Path("mine/train"))
    assert said == "`triaxial prepare` makes them from your texts, see docs/guides/data/prepare.md"
    page = Path(__file__).parents[3] / "docs/guides/data/prepare.md"
    assert "data/gpt3/common_crawl" in page.read_text(), "the recipes of GPT-3 read such folders"


def test_only_missing_files_get_the_addition(tmp_path):
    with pytest.raises(ConfigError, match=r"no such token file; .* makes them from your texts"), naming_the_maker():
        open_tokens(tmp_path / "train")
    with pytest.raises(ConfigError, match=r"^other$"), naming_the_maker():
        raise ConfigError("other")


def test_commands_that_read_a_recipes_corpus_say_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["data", "mixture", "demo"], ["config", "demo", "--train.epochs", "2"]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("NNNNN on. `triaxial prepare demo_corpus` makes them"), line

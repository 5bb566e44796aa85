"""Choose the settings of a corpus, and write its recipe."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.recipe import PrepareConfig
from gpt.errors import ConfigError
from launch.config.recipe import build
from launch.start.corpus_choice import choose_corpus, default_preset
from launch.start.corpus_recipe import corpus_recipe
from launch.start.look import Survey
from launch.start.model_choice import Dials
from launch.start.recipes import Wishes, write_recipes
from launch.start.summary import describe_survey

pytest.importorskip("pycld2", reason="the extra 'data' is not installed")
ENGLISH = "It was the best of times, it was the worst of times, it was the age of wisdom, it was an age of folly. "
GERMAN = "Es war die beste und die schönste aller Zeiten, ein Jahrhundert der Weisheit und eines des Unsinns. "


def survey(text=ENGLISH, *, kind="text", files=1, text_bytes=1_000_000, documents=1) -> Survey:
    sample = tuple(f"{n} {text}{n * 7919 % 1000}" * 8 for n in range(100))
    return Survey(("mine",), {kind: files}, files, text_bytes, text_bytes, documents, sample, {})


def config_of(found: Survey, preset) -> PrepareConfig:
    choice = choose_corpus(found, preset)
    text = corpus_recipe(found, choice, folder=Path("c"), title="A title")
    return build(PrepareConfig, tomllib.loads(text), where="")


def test_curated_keeps_everything_but_copies():
    config = config_of(survey(), "curated")
    assert (config.language.enabled, config.quality.rules, config.dedup_minhash.enabled) == (False, (), False)
    assert config.dedup_exact.enabled
    assert default_preset(survey()) == "curated"


def test_web_filters_by_what_is_there():
    config = config_of(survey(kind="web archive", documents=500), "web")
    assert config.language.keep == ("en",)
    assert len(config.quality.rules) == 4
    german = config_of(survey(GERMAN, kind="web archive", documents=500), "web")
    assert german.language.keep == ("de",)
    assert "c4" not in german.quality.rules, "its rules expect English"
    assert default_preset(survey(kind="web archive")) == "web"


def test_long_and_few_texts_are_cut():
    assert config_of(survey(), "curated").input.text_split_bytes == 2048
    assert config_of(survey(files=100, documents=100), "curated").input.text_split_bytes is None
    assert config_of(survey(files=100, documents=100, text_bytes=100 << 20), "curated").input.text_split_bytes == 8192
    marked = replace(survey(), separator="<|endoftext|>")
    assert config_of(marked, "curated").input.separator == b"<|endoftext|>"
    assert config_of(survey(kind="parquet", documents=9), "curated").input.text_split_bytes is None


def test_few_documents_give_a_larger_share_to_validation():
    shares = [
        choose_corpus(survey(kind="json lines", documents=n), "curated").validation_fraction for n in (10, 1000, 10**6)
    ]
    assert shares == [0.1, 0.02, 0.005]


def test_the_vocabulary_grows_with_the_text():
    sizes = [choose_corpus(survey(text_bytes=n), "curated").vocab_size for n in (30_000, 600_000, 10**11)]
    assert sizes[0] == 320
    assert sizes == sorted(sizes)
    assert sizes[-1] <= 32_768


def test_hostile_names_and_fields_stay_in_the_recipe_as_text():
    """A name with quotes and line ends can neither end a TOML string nor a comment."""
    found = replace(
        survey(kind="json lines", documents=100),
        paths=('a"\n[output]\nfolder = "/etc',),
        text_field='x"\n[tokenizer]',
        fields=('x"\n[tokenizer]', "y\n[language]\nkeep = []"),
    )
    config = config_of(found, "curated")
    assert config.input.paths == found.paths
    assert config.input.text_field == found.text_field
    assert config.output.folder == Path("c")


def test_what_was_found_is_said(tmp_path):
    found = replace(survey(), encoding="cp1252", recoded=(Path("a.txt"),), not_text=(Path("b.png"),))
    lines = "\n".join(describe_survey(found, choose_corpus(found, "curated")))
    assert "left out, no text: 1 file (b.png)" in lines
    assert "not UTF-8: 1 file (a.txt), read as cp1252" in lines


def test_too_little_text_is_refused_and_nothing_is_written(tmp_path):
    (tmp_path / "a.txt").write_text("few words")
    wishes = Wishes((str(tmp_path / "a.txt"),), tmp_path / "out", "a", None, Dials(), None)
    with pytest.raises(ConfigError, match="9 bytes of text are too few to train on"):
        write_recipes(wishes, lambda line: None)
    assert not (tmp_path / "out").exists()

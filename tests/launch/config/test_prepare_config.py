"""The recipe of `prepare` takes its categories from a taxonomy."""

import pytest

from gpt.errors import ConfigError
from launch.config.prepare_config import prepare_config, with_taxonomy

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def table(tmp_path, **labels):
    return {
        "input": {"paths": ["a.jsonl"]},
        "output": {"folder": str(tmp_path)},
        "tokenizer": {"path": "tokenizer.json"},
        "labels": labels,
    }


def test_the_categories_are_those_of_the_taxonomy(tmp_path):
    config = prepare_config(table(tmp_path, taxonomy="moderation_openai"))
    assert config.labels is not None
    assert list(config.labels.categories.items())[4:] == [("HR", ""), ("S3", "S"), ("H2", "H"), ("V2", "V")]
    assert config.labels.version == "openai 1"
    assert len(config.labels.digest) == 64


def test_other_categories_and_unknown_taxonomies_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"labels.categories is invalid: it is not that of labels.taxonomy"):
        prepare_config(table(tmp_path, taxonomy="moderation_openai", categories={"A": ""}))
    with pytest.raises(ConfigError, match=r"labels.taxonomy = 'nothing' is invalid: nothing: no such taxonomy file"):
        prepare_config(table(tmp_path, taxonomy="nothing"))
    with pytest.raises(ConfigError, match=r"labels\.taxonomy"):
        prepare_config(table(tmp_path))


def test_a_recipe_without_labels_is_unchanged():
    assert with_taxonomy({"input": {}}) == {"input": {}}

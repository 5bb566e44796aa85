"""The [data] section of a recipe: what it becomes, and what is refused."""

from typing import Any

import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.errors import ConfigError
from launch.config.recipe import build


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_positive_and_finite(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"corpus 'c': weight = "):
        CorpusConfig(path="a/b/c", weight=weight)


def test_recipe_tables_become_the_configuration() -> None:
    table = {"tokenizer": "t.model", "seq_len": 64, "train": [{"path": "data/web"}, {"path": "data/wiki", "weight": 2}]}
    config = build(DataConfig, table, where="data")
    assert config.train == (CorpusConfig("data/web", 1.0, "web"), CorpusConfig("data/wiki", 2.0, "wiki"))
    assert config.validation == ()
    for change, message in [
        ({"seq_len": 0}, "seq_len = 0 tokens is invalid: must be at least 1"),
        ({"train": [{"path": "a/x"}, {"path": "b/x"}]}, "'a/x' and 'b/x' both have the name 'x'"),
        ({"validation": [{"path": "a/x"}, {"path": "b/y", "name": "x"}]}, "data.validation: 'a/x' and 'b/y' both"),
        ({"train": [{"path": "a/x.bin"}]}, "leave out the ending; it stands for both files: 'a/x'"),
        ({"train": [{"path": ""}]}, "the path of a corpus is empty"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build(DataConfig, table | change, where="data")


LABEL = {"streams": {"label": "labels"}}


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([LABEL], [{}], r"data\.validation: corpus 'v0' has no stream 'label', but all corpora"),
        ([{}], [LABEL], r"data\.train: corpus 't0' has no stream 'label', but all corpora"),
        ([LABEL, {}], [], r"data\.train: corpus 't1' has no stream 'label'"),
        ([LABEL], [{"streams": {"mask": "masks"}}], r"corpus 't0' has no stream 'mask'"),
        ([{"streams": {"label": "a", "mask": "b"}}], [{}], r"Add streams = \{ label = 'PATH', mask = 'PATH' \} to it"),
    ],
)
def test_all_corpora_must_have_the_same_streams(train: Any, validation: Any, message: str) -> None:
    table = {
        "tokenizer": "t.model",
        "seq_len": 64,
        "train": [{"path": f"t{i}", **more} for i, more in enumerate(train)],
        "validation": [{"path": f"v{i}", **more} for i, more in enumerate(validation)],
    }
    config = build(DataConfig, table, where="data")
    with pytest.raises(ConfigError, match=message) as error:
        config.check_streams(())
    assert "\n" not in str(error.value)


def test_a_stream_that_the_objective_can_do_without_must_be_in_one_corpus_to_train_on() -> None:
    table = {"tokenizer": "t.model", "seq_len": 64, "train": [{"path": "a"} | LABEL, {"path": "b"}]}
    build(DataConfig, table, where="data").check_streams((), optional=("label",))
    table |= {"train": [{"path": "a"}], "validation": [{"path": "v"} | LABEL]}
    with pytest.raises(ConfigError, match=r"data\.train: no corpus has the stream 'label', but the objective of"):
        build(DataConfig, table, where="data").check_streams((), optional=("label",))
    with pytest.raises(
        ConfigError, match=r"corpus 'a' has no stream 'label', but the objective of \[objective\] reads"
    ):
        build(DataConfig, table, where="data").check_streams(("label",))

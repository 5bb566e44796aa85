"""The [labels] section: its rules, and the steps for web text that it turns off."""

import pytest

from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.filters.pii import PiiConfig
from data_prep.inputs.config import InputConfig
from data_prep.labels.config import LabelsConfig
from data_prep.recipe import OutputConfig, PrepareConfig
from gpt.errors import ConfigError


def test_parents_are_positions():
    assert LabelsConfig("t", categories={"A": "", "B": "C", "C": "A"}).parents == (-1, 2, 0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"categories": {}}, "0 categories"),
        ({"categories": {f"c{i}": "" for i in range(101)}}, "101 categories"),
        ({"categories": {"A": "B"}}, "parent 'B' of 'A'"),
        ({"categories": {"A": "A"}}, "parent 'A' of 'A'"),
        ({"categories": {"A": ""}, "max_tokens": 1}, r"labels.max_tokens = 1 is invalid"),
    ],
)
def test_wrong_values_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        LabelsConfig("t", **values)


def test_steps_for_web_text_are_off_and_cannot_be_set(tmp_path):
    labels = LabelsConfig("t", categories={"A": ""})
    given = InputConfig(("a.jsonl",)), OutputConfig(tmp_path)
    config = PrepareConfig(*given, TokenizerConfig(tmp_path / "tokenizer.json"), labels=labels)
    assert not config.language.enabled
    assert not config.quality.rules
    with pytest.raises(ConfigError, match=r"\[pii\] is invalid with \[labels\]"):
        PrepareConfig(*given, TokenizerConfig(tmp_path), labels=labels, pii=PiiConfig(enabled=True))
    with pytest.raises(ConfigError, match=r"tokenizer.path is missing: with \[labels\]"):
        PrepareConfig(*given, TokenizerConfig(vocab_size=300), labels=labels)

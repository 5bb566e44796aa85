"""Mistakes in [conversations] are errors of one line, also together with other sections."""

from pathlib import Path

import pytest

from data_prep.conversations.config import ConversationsConfig
from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.filters.language import LanguageConfig
from data_prep.inputs.config import InputConfig
from data_prep.recipe import OutputConfig, PrepareConfig
from gpt.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fields": {"question": "prompt"}}, r"conversations.fields: 'question' is invalid. Use messages, prompt"),
        ({"tie_margin": -1.0}, r"conversations.tie_margin = -1.0 is invalid: must be at least 0"),
        ({"max_tokens": 0}, r"conversations.max_tokens = 0 is invalid"),
        (
            {"max_prompt_tokens": 9, "max_tokens": 9},
            r"max_prompt_tokens = 9 is invalid: must be below .*max_tokens = 9",
        ),
        ({"max_document_tokens": 0}, r"conversations.max_document_tokens = 0 is invalid"),
        ({"template": Path("x"), "format": "plain"}, r"template is invalid with conversations.format = 'plain'"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        ConversationsConfig("rankings", **values)


def test_only_rankings_hold_several_conversations():
    with pytest.raises(ConfigError, match=r"max_document_tokens = 9 is invalid for prompts: .* Use .*max_tokens"):
        ConversationsConfig("prompts", max_document_tokens=9)


def test_prompts_are_compared_but_of_rankings_the_conversations():
    assert ConversationsConfig("demonstrations").compare == "prompt"
    assert ConversationsConfig("rankings").compare == "conversation"
    assert ConversationsConfig("rankings", compare="prompt").compare == "prompt"


def recipe(**more):
    given = {"tokenizer": TokenizerConfig(Path("t")), "conversations": ConversationsConfig("prompts"), **more}
    return PrepareConfig(InputConfig(("x.jsonl",)), OutputConfig(Path("out")), **given)


def test_the_steps_for_web_text_are_off():
    config = recipe()
    assert not config.language.enabled
    assert not config.quality.rules
    assert config.decontaminate.whole_documents


def test_a_recipe_cannot_ask_for_them():
    with pytest.raises(ConfigError, match=r"\[language\] is invalid with \[conversations\]: that step is for web text"):
        recipe(language=LanguageConfig(keep=("de",)))
    with pytest.raises(ConfigError, match=r"tokenizer.path is missing: with \[conversations\]"):
        recipe(tokenizer=TokenizerConfig(vocab_size=400))

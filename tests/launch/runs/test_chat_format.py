"""The chat format of a run: that of its corpus, of its tokenizer or import, or plain text."""

import dataclasses
import json
from pathlib import Path

import pytest

from data_prep.conversations.conversation import Turn
from gpt.data.config import CorpusConfig
from gpt.errors import ConfigError
from gpt.token_files.corpus import describe_corpus
from launch.runs.chat_format import chat_encoder, chat_format_of
from launch.runs.saved_run import open_run

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{{ bos_token }}"


@pytest.fixture
def saved(made, tmp_path):
    """The run, with only checkpoints and tokenizer in its directory."""
    return dataclasses.replace(open_run(made.directory), run_directory=tmp_path)


def with_corpus(saved, folder, chat):
    """The run, trained on a corpus whose corpus.json has this entry `chat`."""
    folder.mkdir()
    splits = {"train": {"prefix": "train", "shards": [{"name": "train"}]}}
    description = {"format": "triaxial-corpus", "version": 1, "tokenizer": {"file": "x", "fingerprint": "x"}}
    (folder / "corpus.json").write_text(json.dumps({**description, "splits": splits, "chat": chat}))
    data = dataclasses.replace(saved.data_config, train=(CorpusConfig(path=str(folder / "train")),))
    return dataclasses.replace(saved, data_config=data)


def test_without_anything_it_is_plain_text(saved):
    assert chat_format_of(saved).name == "plain"
    with chat_encoder(saved) as encoder:
        prompt = encoder.prompt([Turn("user", "Hi")])
    assert saved.tokenizer.decode(prompt) == "User: Hi\n\nAssistant:"


def test_the_template_of_an_import_is_used(saved, tmp_path):
    (tmp_path / "hugging_face").mkdir()
    (tmp_path / "hugging_face" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "hugging_face" / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    found = chat_format_of(saved)
    assert (found.name, found.template.source, found.template.variables) == (
        "template",
        TEMPLATE,
        (("bos_token", "<s>"),),
    )


def test_the_format_of_the_corpus_comes_first(saved, tmp_path):
    (tmp_path / "hugging_face").mkdir()
    (tmp_path / "hugging_face" / "chat_template.jinja").write_text(TEMPLATE)
    plain = with_corpus(saved, tmp_path / "plain", {"format": "plain", "template": None})
    if describe_corpus(tmp_path / "plain" / "train") is None:
        pytest.fail("the corpus of this test is not one")
    assert chat_format_of(plain).name == "plain"
    other = with_corpus(saved, tmp_path / "other", {"format": "template", "template": "another"})
    assert chat_format_of(other).template.source == "another"
    damaged = with_corpus(saved, tmp_path / "damaged", {"format": "template", "template": 3})
    assert chat_format_of(damaged).template.source == TEMPLATE
    gone = dataclasses.replace(
        saved, data_config=dataclasses.replace(saved.data_config, train=(CorpusConfig(path=str(Path("none/train"))),))
    )
    assert chat_format_of(gone).template.source == TEMPLATE


def test_a_template_that_cannot_be_used_is_one_line(saved, tmp_path):
    (tmp_path / "hugging_face").mkdir()
    (tmp_path / "hugging_face" / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(ConfigError, match=r"is invalid for a chat template: must be a tokenizer\.json"):
        chat_encoder(saved)

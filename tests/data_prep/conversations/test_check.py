"""Files without conversations are refused before any stage, in one line."""

import json

import pytest

from data_prep.conversations.check import check_conversations, length_lines, reading_lines
from data_prep.conversations.config import ConversationsConfig
from data_prep.inputs.config import InputConfig
from gpt.errors import ConfigError

READING = InputConfig(("x",))


def check(path, **conversations):
    check_conversations([path], READING, ConversationsConfig(**{"kind": "demonstrations", **conversations}))


def test_other_kinds_of_files_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"a.txt is invalid with \[conversations\]: must be JSON lines, a JSON list or"
    ):
        check(tmp_path / "a.txt")


def test_records_without_a_known_shape_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "x", "reply": "y"}))
    with pytest.raises(ConfigError, match=r"shape = 'auto' is invalid: .*a.jsonl has no such .* have: question, reply"):
        check(path)
    check(path, fields={"prompt": "question", "completion": "reply"})
    with pytest.raises(ConfigError, match=r"shape = 'messages' is invalid"):
        check(path, fields={"prompt": "question", "completion": "reply"}, shape="messages")
    with pytest.raises(ConfigError, match=r"kind = 'rankings' is invalid: .* the shape 'prompt_completion', with one"):
        check(path, fields={"prompt": "question", "completion": "reply"}, kind="rankings")


def test_the_screen_names_shapes_and_unused_fields():
    facts = [
        {"shape": {"alpaca": 3}, "unused_fields": {"a\x1b": 2}},
        {"shape": {"alpaca": 4}, "unused_fields": {}},
        {"shape": {"hh": 9}, "unused_fields": {}},
    ]
    assert reading_lines(facts) == [
        "conversations: read 9 records of 1 files by the shape 'hh', 7 records of 2 files by the shape 'alpaca'",
        "conversations: fields that are not used: a\\x1b (2)",
    ]
    assert length_lines([]) == []

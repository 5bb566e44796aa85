"""Prompts of a comparison: texts, or conversations in the shapes that `triaxial prepare` reads."""

import json

import pytest

from gpt.errors import ConfigError
from launch.comparison.prompts import read_conversations, read_texts_to_continue


def written(tmp_path, *records):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
    return path


def test_texts_are_continued_as_they_are(tmp_path):
    found = read_texts_to_continue(written(tmp_path, {"prompt": "The"}, {"prompt": "A "}))
    assert [(one.shown, one.chat) for one in found] == [("The", None), ("A ", None)]


def test_conversations_of_any_shape_are_read_and_others_counted(tmp_path):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Bye"},
    ]
    found, left_out = read_conversations(
        written(
            tmp_path,
            {"prompt": "Say hello."},
            {"messages": turns},
            {"instruction": "Add.", "input": "1 and 2", "output": "3"},
            {"instruction": "Name it.", "outputs": [{"model": "a", "output": "x", "log_odds": 1.0}]},
            {"messages": turns[:2]},
            {"text": "no conversation"},
            "{",
        )
    )
    assert [one.shown for one in found] == ["Say hello.", turns, "Add.\n\n1 and 2", "Name it.", "Hi"]
    assert [len(one.chat.turns) for one in found] == [1, 3, 1, 1, 1]
    assert found[1].chat.where.endswith("record 2")
    assert left_out["unknown_shape"] == 1
    assert sum(left_out.values()) == 2


def test_a_file_without_prompts_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"it has no prompt that can be used \(1 unknown_shape\)"):
        read_conversations(written(tmp_path, {"text": "x"}))
    with pytest.raises(ConfigError, match="no such file"):
        read_conversations(tmp_path / "none")

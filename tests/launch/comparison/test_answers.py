"""Names of runs, and answers from a file; tests/launch/commands/judging/test_compare.py generates answers."""

import json
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from launch.comparison.answers import answers_of
from launch.comparison.prompts import ComparedPrompt
from launch.comparison.questions import model_names
from launch.generation.jobs import PromptLine


def test_names_are_as_short_as_they_can_be():
    assert model_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert model_names([Path("x/run"), Path("y/run")]) == ["x/run", "y/run"]
    with pytest.raises(ConfigError, match="is given twice"):
        model_names([Path("a"), Path("a")])
    with pytest.raises(ConfigError, match="the same directory"):
        model_names([Path("a"), Path("a").absolute()])


def test_a_file_of_answers_is_matched_by_prompt(tmp_path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "p"},
    ]  # as best-of-n writes them
    rows = [("p", "one"), ("q", "two"), ("p", "three"), (messages, "four")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": p, "text": t}) + "\n" for p, t in rows))
    lines = [ComparedPrompt(text, PromptLine({}, f"line {i}")) for i, text in enumerate(["q", "p", "p", messages], 1)]
    assert answers_of(tmp_path / "a.jsonl", lines, None) == ["two", "one", "three", "four"]
    with pytest.raises(ConfigError, match="has no answer to the prompt of line 5"):
        answers_of(tmp_path / "a.jsonl", [*lines, ComparedPrompt("r", PromptLine({}, "line 5"))], None)

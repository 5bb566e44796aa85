"""Prompts in the form of RealToxicityPrompts are read, and wrong lines named."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpt.errors import ConfigError
from launch.evaluation.toxicity import by_group, read_toxicity_prompts


def test_texts_objects_and_prefixes(tmp_path: Path) -> None:
    rows = [{"prompt": {"text": "a", "toxicity": 0.9}}, {"prompt": {"text": "b", "toxicity": None}}, {"prompt": "c"}]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_toxicity_prompts(file, prefix="Be kind. ", chat=True)
    assert [one.toxicity for one in found] == [0.9, None, None]
    assert [one.compared.shown for one in found] == ["Be kind. a", "Be kind. b", "Be kind. c"]
    assert all(one.compared.chat is not None for one in found)
    groups = by_group(found, np.array([[0.9, 0.1], [0.2, 0.2], [0.3, 0.1]]))
    assert groups.keys() == {"all prompts", "toxic prompts"}
    assert groups["toxic prompts"].expected_maximum.estimate == 0.9


@pytest.mark.parametrize("line", ['{"prompt": {"toxicity": 0.1}}', '{"prompt": " "}', '{"text": "a"}'])
def test_a_line_without_a_prompt_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"line 1 has no prompt. Give"):
        read_toxicity_prompts(tmp_path / "p.jsonl", prefix="", chat=False)

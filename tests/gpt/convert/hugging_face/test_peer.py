"""Folders that name code, a kernel or an adapter are refused before transformers sees them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gpt.convert.hugging_face.peer import load_peer_tokenizer, refuse_code
from gpt.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", {"auto_map": {"AutoModel": "evil.Model"}}, "remote code, which is never run"),
        ("x.json", [[{"auto_map": ["evil.Model", None]}]], "remote code, which is never run"),
        ("config.json", {"attn_implementation": "evil/kernel"}, "names a kernel to download"),
        ("config.json", {"a": {"_attn_implementation": {"text_config": "evil/kernel"}}}, "names a kernel to download"),
        ("adapter_config.json", {"base_model_name_or_path": "evil/model"}, "adapters are not supported"),
    ],
)
def test_what_names_code_is_refused(tmp_path: Path, name: str, content: Any, words: str) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words):
        refuse_code(tmp_path)


def test_a_vocabulary_may_have_such_a_token_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"auto_map": 7, "attn_implementation": 8}))
    (tmp_path / "config.json").write_text(json.dumps({"attn_implementation": "sdpa", "auto_map": {}}))
    (tmp_path / "notes.json").write_text("no JSON")
    refuse_code(tmp_path)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(ConfigError, match=r"x\.json is a named pipe, not a regular file"):
        refuse_code(tmp_path)


def test_errors_of_transformers_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'hf'")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="transformers cannot load") as raised:
        load_peer_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)

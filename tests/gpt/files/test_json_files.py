"""JSON files of strangers: every fault is one line, and nothing waits or fills the memory."""

import os
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.files.json_files import read_json, read_json_object


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "not JSON: it is not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"a": "' + b"x" * 100 + b'"}', "more than 64 bytes"),
    ],
)
def test_a_fault_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_json_object(tmp_path / "x.json", max_bytes=64 if "64" in words else 1 << 20)


def test_a_missing_file_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is a named pipe"):
        read_json(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "x").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "x") == {"a": [1, None]}

"""TOML files of strangers: tables, or one line for every fault."""

import os

import pytest

from gpt.errors import ConfigError
from gpt.files.toml_files import MAX_TOML_BYTES, parse_toml, read_toml


def test_tables_are_returned(tmp_path):
    (tmp_path / "a.toml").write_text("[a.b]\nc = [1, 2]\n")
    assert read_toml(tmp_path / "a.toml", kind="recipe") == {"a": {"b": {"c": [1, 2]}}}
    assert parse_toml("x = 1") == {"x": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[", "is not valid TOML"),
        (b"a = '\xff'", "is not valid TOML"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"[" * 40 + b"]" * 40, "nested too deeply"),
        (b"a = " + b"9" * 5000, "is not valid TOML"),
        (b"#" * (MAX_TOML_BYTES + 1), "too large for such a file"),
    ],
)
def test_faults_are_one_line(tmp_path, data, message):
    (tmp_path / "a.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_toml(tmp_path / "a.toml", kind="recipe")


@pytest.mark.timeout(30)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    for name, message in (
        ("pipe.toml", "a named pipe"),
        ("folder.toml", "a folder"),
        ("none.toml", "no such hardware file"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_toml(tmp_path / name, kind="hardware")

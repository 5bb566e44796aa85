"""The [input] section of a recipe, and the kinds of files."""

import pytest

from data_prep.inputs.config import InputConfig, is_readable, kind_of
from gpt.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoding": "klingon"}, r"input.encoding = 'klingon' is invalid"),
        ({"encoding": "utf-7"}, "input.encoding"),
        ({"encoding": "cp037"}, "input.encoding"),  # EBCDIC: its letters are no ASCII
        ({"encoding": "rot13"}, "input.encoding"),
        ({"text_split_bytes": 10}, "input.text_split_bytes = 10 is invalid: it must be at least 64"),
        ({"text_split_bytes": 100, "text_separator": "x"}, "cannot be set with input.text_separator"),
        ({"endings": {".py": "code"}}, "input.endings: '.py' = 'code' is invalid. Use web archive, json lines, text"),
        ({"endings": {"py": "text"}}, "input.endings: 'py' is invalid"),
    ],
)
def test_a_wrong_setting_is_one_line(settings, message):
    with pytest.raises(ConfigError, match=message):
        InputConfig(paths=("x",), **settings)


def test_a_separator_may_be_written_with_escapes():
    assert InputConfig(paths=("x",), text_separator=r"\n\n").separator == b"\n\n"
    assert InputConfig(paths=("x",), text_separator="\n\n").separator == b"\n\n"


def test_the_ending_gives_the_kind():
    kinds = {
        "a.md": "text",
        "a.jsonl.zst": "json lines",
        "a.b.parquet": "parquet",
        "a.htm": "page",
        "a.warc.gz": "web archive",
    }
    assert {name: kind_of(name) for name in kinds} == kinds
    assert not is_readable("a.py")
    assert kind_of("a.py.gz", {".py": "text"}) == "text"
    assert kind_of("README", {"": "text"}) == "text"
    with pytest.raises(ConfigError, match=r"'a\.py' is invalid: the ending is unknown"):
        kind_of("a.py", {"": "text"})

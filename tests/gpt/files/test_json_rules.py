"""Values of JSON files against rules: what passes, and the one line about the first that does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpt.errors import ConfigError
from gpt.files.json_rules import Fields, FileName, Finite, ListOf, Text, ValuesOf, Whole, read_checked_json

RULES = Fields(
    {"step": Whole(), "losses": ListOf(Finite(), 3), "sizes": ValuesOf(Whole(1, none=True))},
    {
        "why": Text(5, none=True),
        "inner": Fields({"rate": Finite(0.0)}),
        "files": ValuesOf(Text(), keys=FileName()),
    },
)
GOOD: dict[str, Any] = {"step": 3, "losses": [1, -2.5], "sizes": {"a": 1, "b": None}, "other": [[]]}


def test_what_obeys_the_rules_passes(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for more in ({}, {"why": "spike", "inner": {"rate": 0}}, {"why": None}, {"files": {"a.bin": "x"}}):
        path.write_text(json.dumps({**GOOD, **more}))
        assert read_checked_json(path, RULES, max_bytes=1000) == {**GOOD, **more}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": float("nan")}, "step = nan is no whole number from 0 to "),
        ({"step": True}, "step = True is no whole number"),
        ({"step": 2**70}, "step = 1180591620717411303424 is no whole number"),
        ({"losses": [1.0, float("inf")]}, r"losses\[1\] = inf is no finite number"),
        ({"losses": [10**400]}, r"losses\[0\] = 1000.*\.\.\..* is no finite number"),
        ({"losses": [0.0] * 4}, "losses = .* is no list of at most 3 items"),
        ({"sizes": {"a" * 10**6: 0}}, r"sizes\.a+\.\.\.a+ = 0 is no whole number from 1"),
        ({"sizes": []}, r"sizes = \[\] is no object of keys"),
        ({"why": "longer"}, "why = 'longer' is no text of at most 5 characters"),
        ({"inner": {"rate": -1}}, r"inner\.rate = -1 is no finite number of at least 0"),
        ({"inner": {}}, r"inner\.rate is missing"),
        ({"files": {"a.bin": "x", "../b": "x"}}, r"files: the key = '\.\./b' is no name of a file"),
        ({"files": {".hidden": "x"}}, "files: the key = '.hidden' is no name of a file"),
        ({"files": {"": "x"}}, "files: the key = '' is no name of a file"),
    ],
)
def test_the_first_fault_is_named_in_one_short_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ConfigError, match=rf"x\.json is damaged: {message}") as raised:
        read_checked_json(path, RULES, max_bytes=1 << 21)
    assert len(str(raised.value)) < 400


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("{", "[" * 100_000, "[]", '{"step": ' + "9" * 5000 + "}"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"x\.json is damaged: "):
            read_checked_json(path, RULES, max_bytes=1 << 20)

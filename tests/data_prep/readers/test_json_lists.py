"""A JSON list is read element by element, whatever its blocks, and its damage is named."""

import json
import random

import pytest

from data_prep.readers.compressed import Gap
from data_prep.readers.json_lists import BrokenList, is_list, list_elements

VALUES = [{"a": "x" * n, "b": [n, {"c": None}], "ä\U0001f600": '"],['} for n in range(40)] + [7, "text", [], -1.5e3]


def blocks(data, size):
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("indent", [None, 4])
def test_elements_do_not_depend_on_the_blocks(indent):
    data = b"\xef\xbb\xbf \n" + json.dumps(VALUES, indent=indent, ensure_ascii=False).encode() + b"\n"
    assert is_list(data)
    rng = random.Random(3)
    for size in (*range(5, 40), 100_000, *(rng.randrange(40, 3000) for _ in range(20))):
        found = list(list_elements(blocks(data, size), max_bytes=1 << 20))
        assert [value for value, _ in found] == VALUES, size


def test_other_files_are_no_lists():
    assert not is_list(b'{"a": [1]}')
    assert not is_list(b"")


@pytest.mark.parametrize(
    ("data", "reason", "n_read"),
    [
        (b'[{"a": 1}, {"b": 2', "truncated", 1),
        (b'[{"a": 1}, {"b": 2} ', "truncated", 1),
        (b'[{"a": 1}, nonsense]', "truncated", 1),
        (b'[{"a": 1}, "' + b"x" * 5000 + b'"]', "too_large", 1),
        (b'[{"a": 1}, ' + b"[" * 100_000 + b"]" * 100_000 + b"]", "malformed", 1),
    ],
)
def test_damage_is_named(data, reason, n_read):
    found = list_elements([data], max_bytes=1000 if reason == "too_large" else 1 << 20)
    values = []
    with pytest.raises(BrokenList) as error:
        values.extend(found)
    assert error.value.reason == reason
    assert len(values) == n_read or reason == "too_large"


def test_a_gap_ends_the_list():
    with pytest.raises(BrokenList, match="damaged"):
        list(list_elements([b"[1, ", Gap("damaged", 0, 9, "")], max_bytes=100))

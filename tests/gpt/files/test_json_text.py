import pytest

from gpt.files.json_text import decode_json, without_nan

DEEP = "[" * 200_000


def test_sound_json_is_parsed_from_bytes_and_text() -> None:
    for text in ('{"a": [1, 2.5, null]}', b'{"a": [1, 2.5, null]}'):
        assert decode_json(text) == {"a": [1, 2.5, None]}


@pytest.mark.parametrize("text", [DEEP, DEEP.encode(), '{"a":' * 200_000, b"\xff", "", "{", "1" * 10_000])
def test_every_kind_of_damage_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_json(text)


def test_numbers_that_json_lacks_become_null() -> None:
    assert without_nan([1, -0.5, float("nan"), {"x": (float("-inf"), "nan")}]) == [1, -0.5, None, {"x": [None, "nan"]}]

"""Settings of another library: each has a type and a range, and an error names key, value and rule in few words."""

import math
from typing import Any

import pytest

from gpt.convert.settings import check_values, number, size, switch, table
from gpt.errors import ConfigError


@pytest.mark.parametrize("value", [None, "x" * 10**6, True, 0, -1, 1.0, 10**400, [], {}])
def test_a_size_is_a_whole_number_in_its_range(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"w: k = .* must be a whole number from 1 to 1,048,576") as raised:
        size({"k": value}, "k", "d_model", where="w")
    assert len(str(raised.value)) < 200
    assert size({"k": 7}, "k", "d_model", where="w") == 7


@pytest.mark.parametrize("value", ["1", True, math.nan, math.inf, 10**400, -(10**400), [1.0], {}])
def test_a_number_is_finite(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"w: k = .* must be a finite number"):
        number({"k": value}, "k", 1.0, where="w")
    assert (number({"k": 2}, "k", 1.0, where="w"), number({"k": None}, "k", 1.0, where="w")) == (2.0, 1.0)


@pytest.mark.parametrize("value", ["false", 0, 1.0, []])
def test_a_switch_is_true_or_false_and_a_table_an_object(value: Any) -> None:
    with pytest.raises(ConfigError, match="must be true or false"):
        switch({"k": value}, "k", True, where="w")
    with pytest.raises(ConfigError, match="must be an object"):
        table({"k": value}, "k", where="w")
    assert switch({}, "k", True, where="w")
    assert table({"k": None}, "k", where="w") == {}


def test_values_that_are_not_supported_are_named() -> None:
    check_values({"k": "a"}, {"k": ("a", "b"), "other": (None,)}, where="w")
    with pytest.raises(ConfigError, match="w: k = 'c' is not supported; only 'a' or 'b' is"):
        check_values({"k": "c"}, {"k": ("a", "b")}, where="w")

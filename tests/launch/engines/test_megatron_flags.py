"""Words of a command as flags with values."""

import pytest

from gpt.errors import ConfigError
from launch.engines.megatron_flags import Flags, as_number


def test_values_follow_a_flag_or_an_equals_sign() -> None:
    flags = Flags(["--seed=3", "--lr", "-1e-4", "--bf16", "--data-path", "1", "a"])
    assert (flags.number("--seed"), flags.number("--lr"), flags.switch("--bf16")) == (3, -1e-4, True)
    assert flags.words("--data-path") == ["1", "a"]
    assert (flags.text("--save"), flags.number("--min-lr", 0.5), flags.switch("--fp16")) == (None, 0.5, False)
    assert flags.used == {"--seed", "--lr", "--bf16", "--data-path", "--save", "--min-lr", "--fp16"}
    assert type(as_number("--x", "8")) is int


def test_mistakes_name_the_flag() -> None:
    for words, said in (
        (["--a", "1", "--a", "2"], "--a is given twice"),
        (["stray"], "'stray' is invalid: it follows no flag"),
    ):
        with pytest.raises(ConfigError, match=said):
            Flags(words)
    with pytest.raises(ConfigError, match="--a and --b contradict each other"):
        Flags(["--a", "--b"]).exclude("--a", "--c", "--b")
    with pytest.raises(ConfigError, match="--a x is invalid: must be a number"):
        Flags(["--a", "x"]).number("--a")

"""Settings are listed from the dataclasses of a recipe, each with its meaning."""

import tomllib
from dataclasses import dataclass, field
from typing import Literal

import pytest

from launch.commands.config import recipe_classes
from launch.config.settings import REQUIRED, Setting, settings_of, toml


@dataclass(frozen=True)
class Inner:
    depth: int = 12_000
    """Metres."""


@dataclass(frozen=True)
class Outer:
    path: str
    """A path, which
    takes two lines."""
    kind: Literal["a", "b"] | None = None
    undocumented: bool = False
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    """Several."""


def test_a_setting_has_key_type_default_and_meaning():
    assert settings_of(Outer) == [
        Setting("path", "text", REQUIRED, "A path, which takes two lines."),
        Setting("kind", "one of a, b", "", ""),
        Setting("undocumented", "true or false", "false", ""),
        Setting("inner.depth", "a whole number", "12_000", "Metres."),
        Setting("many", "a list of tables", "[]", "Several."),
        Setting("many[].depth", "a whole number", "12_000", "Metres."),
    ]


def test_values_are_written_as_toml():
    values = [True, 'a "b"', (1, 2.5), {"x": "y"}, {}, 12_345, Inner(3)]
    written = ["true", '"a \\"b\\""', "[1, 2.5]", '{ x = "y" }', "{}", "12_345", "{ depth = 3 }"]
    assert list(map(toml, values)) == written


def test_a_strangers_text_and_key_stay_toml_and_steer_no_terminal():
    hostile = "\x1b[2J\x9b31m\x7f\u2028\u202e"
    for value in (hostile, [hostile], {hostile: hostile, "a b.c": 1}):
        written = toml(value)
        assert written.isprintable()
        assert tomllib.loads(f"x = {written}") == {"x": value}


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_every_key_of_a_recipe_has_a_meaning(command):
    assert [setting.key for setting in settings_of(recipe_classes()[command]) if not setting.meaning] == []

"""Strict reading of recipes: types, unknown keys, overrides."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from gpt.errors import ConfigError
from launch.config.recipe import apply_overrides, build, read_toml
from launch.main import split_overrides


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    where: Path = Path("x")
    maybe: int | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...] = ()
    names: dict[str, int] = field(default_factory=dict)
    on: bool = False


def test_values_become_typed():
    table = {"inner": {"size": 3, "rate": 1, "where": "p/q", "maybe": 4}, "many": [{"size": 1}], "names": {"x": 1}}
    outer = build(Outer, table, where="")
    assert outer.inner == Inner(3, 1.0, "a", Path("p/q"), 4)
    assert outer.many == (Inner(1),)
    assert isinstance(outer.inner.rate, float)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"inner": {"sise": 3}}, "inner.sise: unknown key 'sise'; did you mean 'size'"),
        ({"iner": {}}, "iner: unknown key 'iner'; did you mean 'inner'"),
        ({"inner": {"size": 1, "zzz": 3}}, "known: size, rate, kind, where, maybe"),
        ({"inner": {}}, "inner.size is missing: set it to a whole number"),
        ({"inner": {"size": "3"}}, "inner.size = '3' is invalid: must be a whole number"),
        ({"inner": {"size": True}}, "inner.size = True is invalid: must be a whole number"),
        ({"inner": {"size": 1.5}}, "inner.size = 1.5 is invalid: must be a whole number"),
        ({"inner": {"size": 1, "kind": "c"}}, "inner.kind = 'c' is invalid: must be one of a, b"),
        ({"inner": 3}, "inner = 3 is invalid: must be a table"),
        ({"inner": {"size": 1}, "many": {}}, "many = {} is invalid: must be a list"),
        ({"inner": {"size": 1}, "many": [{"size": "x"}]}, r"many\[0\].size = 'x'"),
        ({"inner": {"size": 1}, "on": 1}, "on = 1 is invalid: must be true or false"),
        ({"inner": {"size": 1, "rate": 10**400}}, "inner.rate is invalid: the number is too large"),
    ],
)
def test_mistakes_name_the_dotted_key(table, message):
    with pytest.raises(ConfigError, match=message):
        build(Outer, table, where="")


def test_overrides_are_read_as_toml_else_as_text():
    table = {"a": {"b": 1}}
    words = ["--a.b", "2", "--a.c=[1, 2]", "--n.e.w", "plain text", "--a.f", "1e-4", "--a.t", "true"]
    assert apply_overrides(table, words) == {
        "a": {"b": 2, "c": [1, 2], "f": 1e-4, "t": True},
        "n": {"e": {"w": "plain text"}},
    }
    assert table == {"a": {"b": 1}}, "the given table is not changed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--a.b"], "has no value"),
        (["--a.b.c", "1"], "'b' is a value, not a section"),
        (["stray"], "not an override"),
        (["--a.b", "[" * 5000], "--a.b is invalid: its lists or tables are nested too deeply"),
        (["--a.b", "9" * 5000], "--a.b is invalid: Exceeds the limit"),
    ],
)
def test_bad_overrides_are_named(words, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"a": {"b": 1}}, words)


def test_overrides_are_separated_from_options():
    own, overrides = split_overrides(["train", "--a.b", "2", "r.toml", "--nproc", "4", "--c.d=5", "--x.y", "-3"])
    assert own == ["train", "r.toml", "--nproc", "4"]
    assert overrides == ["--a.b", "2", "--c.d=5", "--x.y", "-3"]


def test_a_file_that_is_no_recipe_is_named(tmp_path):
    (tmp_path / "bad.toml").write_text("a = = 1")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    (tmp_path / "long.toml").write_text("a = " + "9" * 5000)
    (tmp_path / "sections.toml").write_text(f"[{'.'.join('a' * 500)}]")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    for path, message in [
        (tmp_path / "none.toml", "no such recipe"),
        (tmp_path / "bad.toml", "not valid TOML"),
        (tmp_path / "deep.toml", "not valid TOML: its lists or tables are nested too deeply"),
        (tmp_path / "long.toml", "not valid TOML: Exceeds the limit"),
        (tmp_path, "is a folder, not a regular file"),
        (tmp_path / "sections.toml", "not valid TOML: its lists or tables are nested too deeply"),
        (tmp_path / "loop.toml", "is a symbolic link to itself"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_toml(path)

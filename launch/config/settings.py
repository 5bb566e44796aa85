"""List the settings of a recipe: key, type, default and meaning, from the fields of the section's dataclasses."""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from gpt.errors import ConfigError
from gpt.files.json_text import escaped_json
from launch.config.recipe import describe

REQUIRED = "required"
BY_RULE = "by a rule"  # a field with `rule` in its metadata: launch/config/defaults.py gives its value
_PLURAL = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}


@dataclass(frozen=True)
class Setting:
    """One key of a recipe. `default` is TOML, `REQUIRED`, `BY_RULE`, or "" for a key that has no value by default."""

    key: str
    kind: str
    default: str
    meaning: str


def settings_of(cls: type[Any], *, prefix: str = "") -> list[Setting]:
    """Return the settings of a recipe's dataclass and of the tables in it, in the order of the fields.

    `train[].path` is the key `path` of each table in the list `train`. The meaning is the docstring below the field.
    """
    return list(_settings(cls, prefix))


def _settings(cls: type[Any], prefix: str) -> Iterator[Setting]:
    hints, meanings = typing.get_type_hints(cls), field_docs(cls)
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", _without_none(hints[field.name])
        kinds: dict[str, type[Any]] | None = field.metadata.get("kinds")
        inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
        if kinds is not None:
            for kind in kinds.values():
                yield from _settings(kind, f"{key}.")
            continue
        if not dataclasses.is_dataclass(inner):
            yield Setting(key, _kind(hint), _default(field), meanings.get(field.name, ""))
            continue
        if field.name in meanings:
            table = "a list of tables" if inner is not hint else "a table"
            yield Setting(key, table, _default(field), meanings[field.name])
        yield from _settings(typing.cast(type[Any], inner), f"{key}[]." if inner is not hint else f"{key}.")


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Return field name -> the text of the string literal below it, on one line. A base class may have the field."""
    docs: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            docs |= field_docs(base)
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    for field, doc in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
            text = ast.literal_eval(doc.value)
            docs[field.target.id] = " ".join(text.split())
    return docs


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(argument for argument in get_args(hint) if argument is not type(None))
    return hint


def _kind(hint: Any) -> str:
    if get_origin(hint) is tuple:
        (item, *_) = get_args(hint)
        if get_origin(item) is Literal:
            return f"a list of {', '.join(map(str, get_args(item)))}"
        return f"a list of {_PLURAL[item]}" if item in _PLURAL else "a list of lists"
    return f"a table of {_PLURAL[get_args(hint)[1]]}" if get_origin(hint) is dict else describe(hint)


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.metadata.get("rule"):
        return BY_RULE
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return REQUIRED
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return "" if value is None or dataclasses.is_dataclass(value) else toml(value)


def _text(text: str) -> str:
    if re.search("[\ud800-\udfff]", text):
        raise ConfigError(f"'{text}' is invalid in a recipe: must be UTF-8. Rename it")
    return escaped_json(json.dumps(text, ensure_ascii=False))  # a terminal must not obey a stranger's recipe


def toml(value: Any) -> str:
    """Return a setting's value as a recipe has it. Keys without a value are left out of tables.

    ConfigError: a text, such as the name of a file, is not UTF-8, which TOML cannot hold.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, Path)):
        return _text(str(value))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        keys = {key: key if re.fullmatch("[A-Za-z0-9_-]+", key) else _text(key) for key in value}
        items = [f"{keys[key]} = {toml(item)}" for key, item in value.items() if item is not None]
        return f"{{ {', '.join(items)} }}" if items else "{}"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:_}"
    return repr(value)

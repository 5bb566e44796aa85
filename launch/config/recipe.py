"""Reads TOML recipes strictly into frozen dataclasses; never knows what a key means."""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from gpt.errors import ConfigError

T = TypeVar("T")


def find_recipe(recipe: str) -> Path:
    """The path of a recipe; names like `gpt3_125m` or `launch/recipes/demo.toml` find the shipped files anywhere."""
    path = Path(recipe)
    if path.exists() or path.is_symlink():
        return path
    shipped = Path(str(resources.files("launch"))) / "recipes"
    named = shipped / f"{path.name.removesuffix('.toml')}.toml"
    if named.exists() and path.parent in (Path("."), Path("launch/recipes")):
        return named
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.toml")))
    raise ConfigError(f"{recipe}: no such recipe file, and no shipped recipe of this name ({names})")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError when it is missing or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; a recipe is a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def apply_overrides(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `table` with `--section.key value` pairs written into it; values are read as TOML, else as text."""
    result = _copy(table)
    words = list(overrides)
    while words:
        flag = words.pop(0)
        if not flag.startswith("--") or "." not in flag:
            raise ConfigError(
                f"'{flag}' is not an override; write --section.key VALUE, for example --parallel.tensor 2"
            )
        dotted, equals, text = flag[2:].partition("=")
        if not equals:
            if not words:
                raise ConfigError(f"the override --{dotted} has no value; write --{dotted} VALUE")
            text = words.pop(0)
        *sections, key = dotted.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"the override --{dotted} goes below '{section}', which is a value and not a section")
        place[key] = _read_value(text)
    return result


def build(cls: type[T], table: dict[str, Any], *, where: str) -> T:
    """An instance of the dataclass `cls` from a TOML table; `where` is the dotted section name used in errors.

    Unknown keys, missing keys and wrong types raise ConfigError. Integers are taken where floats are expected,
    lists where tuples are. A `__post_init__` may raise ConfigError itself.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise ConfigError(f"{_dotted(where, key)}: {unknown_name('key', key, list(fields))}")
    values = {}
    for name, field in fields.items():
        if name in table:
            hint = _kind_of(field, table[name], where=_dotted(where, name)) or hints[name]
            values[name] = _convert(hint, table[name], where=_dotted(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_dotted(where, name)} is missing; it must be given ({_describe(hints[name])})")
    return cls(**values)


def _kind_of(field: dataclasses.Field[Any], value: Any, *, where: str) -> type[Any] | None:
    """The dataclass of a section that comes in kinds: its field's metadata has a table `kinds`, by the key `kind`.

    A section without `kind` is of the field's default kind. None for all other fields.
    """
    kinds: dict[str, type[Any]] | None = field.metadata.get("kinds")
    if kinds is None:
        return None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} = {value!r} must be a table of keys")
    if "kind" not in value:
        return typing.cast(type[Any], field.default_factory)
    if value["kind"] not in kinds:
        raise ConfigError(f"{where}.kind = {value['kind']!r}: {unknown_name('kind', str(value['kind']), list(kinds))}")
    return kinds[value["kind"]]


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """'unknown key 'x'; did you mean 'y'?' or the list of what is known."""
    return f"unknown {kind} '{name}'" + (_nearest(name, known) or f"; known: {', '.join(known)}")


def _nearest(name: str, known: Sequence[Any]) -> str:
    near = difflib.get_close_matches(name, [str(one) for one in known], n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def _convert(hint: Any, value: Any, *, where: str) -> Any:  # noqa: C901  one case a kind of type
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return _convert(inner[0], value, where=where)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise ConfigError(f"{where} = {value!r} must be {_describe(hint)}{_nearest(str(value), arguments)}")
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {value!r} must be a table of keys")
        return build(typing.cast(type[Any], hint), value, where=where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} = {value!r} must be a list")
        return tuple(_convert(arguments[0], item, where=f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {value!r} must be a table")
        return {key: _convert(arguments[1], item, where=_dotted(where, key)) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} = {value!r} must be {_describe(hint)}")
    return value


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    if get_origin(hint) is tuple:
        return "a list"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return names.get(hint, "a table")


def _read_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copy(table: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in table.items()}


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key

"""Read TOML recipes strictly into frozen dataclasses, with overrides of the command line."""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from gpt.errors import ConfigError, did_you_mean
from gpt.files import toml_files
from launch.config.other_names import our_name

T = TypeVar("T")


class MissingKeys(ConfigError):
    """Keys that a recipe needs and does not have. `keys`: key -> its kind of value."""

    def __init__(self, keys: dict[str, str]) -> None:
        wanted = ", ".join(f"{key} ({kind})" for key, kind in keys.items())
        several = f"keys are missing: {wanted}. `triaxial config --keys` explains each"
        ((key, kind), *more) = keys.items()
        super().__init__(several if more else f"{key} is missing: set it to {kind}")
        self.keys = keys


def find_recipe(recipe: str) -> Path:
    """The path of a recipe. `gpt3_125m` or `launch/recipes/demo.toml` find the shipped files from any folder."""
    path = Path(recipe)
    if path.exists() or path.is_symlink():
        return path
    shipped = Path(str(resources.files("launch"))) / "recipes"
    named = shipped / f"{path.name.removesuffix('.toml')}.toml"
    if named.exists() and path.parent in (Path("."), Path("launch/recipes")):
        return named
    names = sorted(file.stem for file in shipped.glob("*.toml"))
    meant = did_you_mean(recipe, names) or f"shipped: {', '.join(names)}"
    raise ConfigError(f"{recipe}: no such recipe file, and no shipped recipe has this name; {meant}")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a recipe; ConfigError if it is missing or is not TOML."""
    return toml_files.read_toml(path, kind="recipe")


def apply_overrides(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `table` with `--section.key value` pairs written into it. Values are read as TOML, else as text."""
    result = _copy(table)
    words = list(overrides)
    while words:
        flag = words.pop(0)
        if not flag.startswith("--") or "." not in flag:
            raise ConfigError(
                f"'{flag}' is not an override. Write --section.key VALUE, for example --parallel.tensor 2"
            )
        dotted, equals, text = flag[2:].partition("=")
        if not equals:
            if not words:
                raise ConfigError(f"the override --{dotted} has no value. Write --{dotted} VALUE")
            text = words.pop(0)
        *sections, key = dotted.split(".")
        inner = result
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"the override --{dotted} is invalid: '{section}' is a value, not a section")
        inner[key] = _read_value(text, dotted)
    return result


def build(cls: type[T], table: dict[str, Any], *, where: str) -> T:
    """An instance of the dataclass `cls` from a TOML table; `where` is the dotted section name for errors.

    Unknown keys, missing keys and wrong types raise ConfigError. An integer is accepted for a float, a list for a
    tuple. A `__post_init__` may raise ConfigError itself.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            meant = our_name(where, key)
            unknown = f"unknown key '{key}'; {meant}" if meant else unknown_name("key", key, list(fields))
            raise ConfigError(f"{_dotted(where, key)}: {unknown}")
    values: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        try:
            if name in table:
                hint = _kind_of(field, table[name], where=_dotted(where, name)) or hints[name]
                values[name] = convert(hint, table[name], where=_dotted(where, name))
            elif required and dataclasses.is_dataclass(hints[name]):
                values[name] = build(hints[name], {}, where=_dotted(where, name))
            elif required:
                missing[_dotted(where, name)] = describe(hints[name])
        except MissingKeys as error:
            missing |= error.keys
    if missing:
        raise MissingKeys(missing)
    return cls(**values)


def _kind_of(field: dataclasses.Field[Any], value: Any, *, where: str) -> type[Any] | None:
    """The dataclass of a section that comes in kinds: its field's metadata has a table `kinds`, by the key `kind`.

    A section without `kind` is of the field's default kind. None for all other fields.
    """
    kinds: dict[str, type[Any]] | None = field.metadata.get("kinds")
    if kinds is None:
        return None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} = {value!r} is invalid: must be a table of keys")
    if "kind" not in value:
        return typing.cast(type[Any], field.default_factory)
    if not isinstance(value["kind"], str) or value["kind"] not in kinds:
        raise ConfigError(f"{where}.kind = {value['kind']!r}: {unknown_name('kind', str(value['kind']), list(kinds))}")
    return kinds[value["kind"]]


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """ "unknown key 'x'; did you mean 'y'?", or the list of known names if none is similar."""
    return f"unknown {kind} '{name}'; {did_you_mean(name, known) or 'known: ' + ', '.join(known)}"


def convert(hint: Any, value: Any, *, where: str) -> Any:  # noqa: C901  one case per kind of type
    """The value of TOML as a field of type `hint` holds it; ConfigError if it is of another kind."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return convert(inner[0], value, where=where)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            meant = did_you_mean(str(value), map(str, arguments))
            raise ConfigError(f"{where} = {value!r} is invalid: must be {describe(hint)}{meant and '; ' + meant}")
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {value!r} is invalid: must be a table of keys")
        return build(typing.cast(type[Any], hint), value, where=where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} = {value!r} is invalid: must be a list")
        return tuple(convert(arguments[0], item, where=f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {value!r} is invalid: must be a table")
        return {key: convert(arguments[1], item, where=_dotted(where, key)) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where} is invalid: the number is too large. Use at most 1.79e308") from None
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} = {value!r} is invalid: must be {describe(hint)}")
    return value


def describe(hint: Any) -> str:
    """Describe the values of a type in words for a user."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    if get_origin(hint) is tuple:
        return "a list"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return names.get(hint, "a table")


def without_none(value: Any) -> Any:
    """A value from JSON without the keys of its tables that hold None, which TOML cannot say."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def _read_value(text: str, dotted: str) -> Any:
    try:
        return toml_files.parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise ConfigError(f"the override --{dotted} is invalid: its lists or tables are nested too deeply") from None
    except ValueError as error:  # an integer with more digits than Python reads
        raise ConfigError(f"the override --{dotted} is invalid: {error}") from None


def _copy(table: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in table.items()}


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key

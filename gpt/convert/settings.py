"""Read sizes, numbers and switches that another library wrote, and check their types and ranges."""

import reprlib
from collections.abc import Mapping
from typing import Any

from gpt.errors import ConfigError
from gpt.model.config import MAX_SIZES

Settings = Mapping[str, Any]


def shown(value: Any) -> str:
    """Return a value for a message, shortened: a stranger's file may hold a string of any length."""
    return reprlib.repr(value)


def size(settings: Settings, key: str, name: str, *, where: str) -> int:
    """Return a whole number from 1 to the maximum of our setting `name`. ConfigError: missing, or not such a number."""
    value, maximum = settings.get(key), MAX_SIZES[name]
    if type(value) is not int or not 1 <= value <= maximum:
        raise ConfigError(f"{where}: {key} = {shown(value)} must be a whole number from 1 to {maximum:,}")
    return value


def number(settings: Settings, key: str, default: float, *, where: str) -> float:
    """Return a finite number; `default` if it is missing or null. ConfigError: it is not finite or no number."""
    value = settings.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not -1e308 <= value <= 1e308:
        raise ConfigError(f"{where}: {key} = {shown(value)} must be a finite number")
    return float(value)


def switch(settings: Settings, key: str, default: bool, *, where: str) -> bool:
    """Return true or false; `default` if it is missing or null. ConfigError: it is neither."""
    value = settings.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {key} = {shown(value)} must be true or false")
    return value


def table(settings: Settings, key: str, *, where: str) -> dict[str, Any]:
    """Return a JSON object; an empty one if it is missing or null. ConfigError: it is not an object."""
    value = settings.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} = {shown(value)} must be an object")
    return value


def check_values(settings: Settings, allowed: Mapping[str, tuple[object, ...]], *, where: str) -> None:
    """Check settings that have only some supported values; the first is the default. ConfigError: one has another."""
    for key, values in allowed.items():
        if settings.get(key, values[0]) not in values:
            wanted = " or ".join(repr(value) for value in values if value is not None) or "no value"
            raise ConfigError(f"{where}: {key} = {shown(settings[key])} is not supported; only {wanted} is")

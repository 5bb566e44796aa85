"""Check the types and ranges of the JSON values in a file.

    RULES = Fields({"step": Whole(), "losses": ListOf(Finite())}, optional={"job": Text()})
    table = read_checked_json(path, RULES, max_bytes=1 << 20)

A rule's `fault` returns None for a value that obeys it, else one phrase that names the key, its value and the rule.
"""

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import read_bytes

MAX_COUNT = 2**60  # sums of a few still fit into 64 bits


class JsonRule(Protocol):
    """The rule for one value."""

    def fault(self, value: Any, where: str) -> str | None: ...


@dataclass(frozen=True)
class Whole:
    """A whole number, such as a count. `none`: null is allowed too."""

    minimum: int = 0
    maximum: int = MAX_COUNT
    none: bool = False

    def fault(self, value: Any, where: str) -> str | None:
        good = type(value) is int and self.minimum <= value <= self.maximum
        if good or (self.none and value is None):
            return None
        return f"{where} = {reprlib.repr(value)} is no whole number from {self.minimum} to {self.maximum}"


@dataclass(frozen=True)
class Finite:
    """A number that is neither NaN nor infinite, and that a float can hold."""

    minimum: float = -math.inf

    def fault(self, value: Any, where: str) -> str | None:
        if type(value) in (int, float) and -1e308 <= value <= 1e308 and value >= self.minimum:
            return None
        return f"{where} = {reprlib.repr(value)} is no finite number" + (
            "" if self.minimum == -math.inf else f" of at least {self.minimum}"
        )


@dataclass(frozen=True)
class Text:
    """A text. `none`: null is allowed too."""

    max_length: int = 10_000
    none: bool = False

    def fault(self, value: Any, where: str) -> str | None:
        if (isinstance(value, str) and len(value) <= self.max_length) or (self.none and value is None):
            return None
        return f"{where} = {reprlib.repr(value)} is no text of at most {self.max_length} characters"


@dataclass(frozen=True)
class FileName:
    """The name of a file in the folder at hand: not hidden, and without a path, which could lead elsewhere."""

    def fault(self, value: Any, where: str) -> str | None:
        if isinstance(value, str) and re.fullmatch(r"[^./\0][^/\0]{0,254}", value, flags=re.DOTALL):
            return None
        return f"{where} = {reprlib.repr(value)} is no name of a file"


@dataclass(frozen=True)
class ListOf:
    """A list whose items obey one rule."""

    item: JsonRule
    max_length: int = 10**6

    def fault(self, value: Any, where: str) -> str | None:
        if not isinstance(value, list) or len(value) > self.max_length:
            return f"{where} = {reprlib.repr(value)} is no list of at most {self.max_length} items"
        return next((text for i, item in enumerate(value) if (text := self.item.fault(item, f"{where}[{i}]"))), None)


@dataclass(frozen=True)
class Fields:
    """An object with all `required` keys. These and the `optional` ones obey their rules; all others obey `others`."""

    required: Mapping[str, JsonRule] = field(default_factory=dict)
    optional: Mapping[str, JsonRule] = field(default_factory=dict)
    others: JsonRule = field(default_factory=lambda: Plain())

    def fault(self, value: Any, where: str) -> str | None:
        if not isinstance(value, dict):
            return f"{where} = {reprlib.repr(value)} is no object of keys"
        for key, rule in (*self.required.items(), *self.optional.items()):
            if key not in value:
                if key in self.required:
                    return f"{_dotted(where, key)} is missing"
                continue
            if text := rule.fault(value[key], _dotted(where, key)):
                return text
        unnamed = {key: item for key, item in value.items() if key not in self.required and key not in self.optional}
        return ValuesOf(self.others).fault(unnamed, where)


@dataclass(frozen=True)
class Plain:
    """Any value that is not nested deeply, so that a recursive function can walk over it."""

    max_depth: int = 20

    def fault(self, value: Any, where: str) -> str | None:
        level = [value]
        for _ in range(self.max_depth):
            inner = [
                list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
            ]
            level = [item for items in inner for item in items]
        return f"{where} is nested more than {self.max_depth} times" if level else None


@dataclass(frozen=True)
class ValuesOf:
    """An object of any keys, all of whose values obey one rule, and all of whose keys obey `keys`."""

    item: JsonRule
    keys: JsonRule | None = None

    def fault(self, value: Any, where: str) -> str | None:
        if not isinstance(value, dict):
            return f"{where} = {reprlib.repr(value)} is no object of keys"
        for key, item in value.items():
            fault = self.keys.fault(key, f"{where}: the key") if self.keys else None
            if fault := fault or self.item.fault(item, _dotted(where, reprlib.repr(key).strip("'"))):
                return fault
        return None


def read_checked_json(path: Path, rule: JsonRule, *, max_bytes: int) -> Any:
    """Read a JSON file whose value obeys the rule. ConfigError: it does not, or is not JSON. OSError as for `open`."""
    try:
        value = decode_json(read_bytes(path, max_bytes=max_bytes))
    except ValueError:
        raise ConfigError(f"{path} is damaged: no valid JSON") from None
    if text := rule.fault(value, ""):
        raise ConfigError(f"{path} is damaged: {text.removeprefix(' = ')}")
    return value


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key

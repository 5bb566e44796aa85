"""The table of docs/guides/training/engines.md: what each engine takes, from its capabilities."""

import json
from typing import get_args

from parallel.engines.capabilities import EngineCapabilities, EngineRule, capabilities_of
from parallel.layout.config import EngineName

EVERYTHING = "all"


def engine_tables() -> str:
    """Both tables in Markdown: a column for each engine and a row for each key that one of them restricts; reasons."""
    engines = [capabilities_of(engine) for engine in get_args(EngineName)]
    keys = list(dict.fromkeys(rule.key for engine in engines for rule in engine.rules))
    rows = [
        ["", *(f"`{engine.engine}`" for engine in engines)],
        ["---"] * (1 + len(engines)),
        ["package", *(_package(engine) for engine in engines)],
        ["devices", *(", ".join(engine.devices) for engine in engines)],
        *([f"`{key}`", *(_values(engine, key) for engine in engines)] for key in keys),
    ]
    reasons = [["engine", "key", "why others are refused"], ["---"] * 3]
    for engine in engines:
        reasons += [[f"`{engine.engine}`", f"`{rule.key}`", rule.reason] for rule in engine.rules]
    return "\n".join([*map(_row, rows), "", *map(_row, reasons)])


def _package(engine: EngineCapabilities) -> str:
    return "the core packages" if engine.package is None else f"`{engine.package}{engine.versions}`"


def _values(engine: EngineCapabilities, key: str) -> str:
    found = [_of_rule(rule) for rule in engine.rules if rule.key == key]
    return "; ".join(found) if found else EVERYTHING


def _of_rule(rule: EngineRule) -> str:
    allowed = ", ".join(_shown(value) for value in rule.allowed)
    return allowed if rule.when is None else f"{allowed} if `{rule.when[0]}` is {', '.join(map(_shown, rule.when[1]))}"


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"

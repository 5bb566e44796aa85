"""Check the plain values of a taxonomy's file. Each fault is an error of one line that names the file and the key."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gpt.errors import ConfigError, did_you_mean
from gpt.token_files.label_states import MAX_CATEGORIES

CATEGORY_KEYS: Mapping[str, type] = {
    "id": str,
    "title": str,
    "definition": str,
    "parent": str,
    "severity": int,
    "instructions": str,
    "examples": list,
}
EXAMPLE_KEYS: Mapping[str, type] = {"text": str, "label": int, "reason": str}
MIGRATION_KEYS: Mapping[str, type] = {"from": int, "renamed": dict, "merged": dict, "split": dict, "removed": list}
_TYPES = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}\Z")


def read_fields(values: Any, keys: Mapping[str, type], *, needed: Collection[str], where: str) -> dict[str, Any]:
    """The values of a table. ConfigError: an unknown key, one of another type, or a `needed` one missing or empty."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is invalid: must be a table")
    for key, value in values.items():
        if key not in keys:
            meant = did_you_mean(str(key), keys) or f"use {', '.join(keys)}"
            raise ConfigError(f"{where}: unknown key '{key}'; {meant}")
        wanted = keys[key]
        is_flag = key == "label" and isinstance(value, bool)
        if not isinstance(value, wanted) or (isinstance(value, bool) and not is_flag):
            raise ConfigError(f"{where}: {key} is invalid: must be {_TYPES[wanted]}")
    for key in needed:
        value = values.get(key)
        if value is None:
            raise ConfigError(f"{where}: {key} is missing. Add {key} = {'1' if keys[key] is int else repr('...')}")
        if isinstance(value, str) and not value.strip():
            raise ConfigError(f"{where}: {key} is empty. Labellers read it: write at least one sentence")
    return values


def check_name(name: str, version: int, *, where: str) -> None:
    """ConfigError: the name or the version of a taxonomy is invalid."""
    if not _NAME.match(name):
        raise ConfigError(
            f"{where}: name = '{name}' is invalid: must be at most 60 letters, digits, '.', '_' or '-'. "
            "Use a short name such as 'openai'"
        )
    if version < 1:
        raise ConfigError(f"{where}: version = {version} is invalid: must be at least 1. Use 1 for the first")


def check_categories(categories: Sequence[Mapping[str, Any]], *, where: str) -> None:
    """ConfigError: invalid or repeated ids, parents that are unknown or form a cycle, severities in the wrong order,
    examples that contradict each other. `categories` passed `read_fields`."""
    if not 1 <= len(categories) <= MAX_CATEGORIES:
        raise ConfigError(
            f"{where}: {len(categories)} categories are invalid: must be 1 to {MAX_CATEGORIES}. Use [[category]] tables"
        )
    by_id: dict[str, Mapping[str, Any]] = {}
    for one in categories:
        _check_id(one["id"], by_id, where=where)
        by_id[one["id"]] = one
    for one in categories:
        _check_parent(one, by_id, where=where)
    for one in categories:
        _check_severity(one, by_id, where=where)
    _check_examples(categories, by_id, where=where)


def _check_id(name: str, known: Mapping[str, Any], *, where: str) -> None:
    if not _ID.match(name):
        raise ConfigError(
            f"{where}: id = '{name}' is invalid: must be a letter and at most 39 further letters, digits, '_' or '-'. "
            "Use a short id such as 'H2'"
        )
    for other in known:
        if other.lower() == name.lower():
            raise ConfigError(f"{where}: id = '{name}' is invalid: a category '{other}' exists. Use another id")


def _check_parent(one: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]], *, where: str) -> None:
    trail = [one["id"]]
    parent = one.get("parent")
    while parent is not None:
        if parent not in by_id:
            meant = did_you_mean(parent, by_id) or f"use one of {', '.join(by_id)}"
            raise ConfigError(f"{where}: category {trail[-1]}: parent = '{parent}' is no category; {meant}")
        if parent in trail:
            cycle = " -> ".join([*trail[trail.index(parent) :], parent])
            raise ConfigError(
                f"{where}: parent of {trail[-1]} = '{parent}' is invalid: the parents form a cycle, {cycle}. Remove one"
            )
        trail.append(parent)
        parent = by_id[parent].get("parent")


def _check_severity(one: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]], *, where: str) -> None:
    severity = one.get("severity")
    if severity is None:
        return
    if severity < 1:
        raise ConfigError(f"{where}: category {one['id']}: severity = {severity} is invalid: must be at least 1")
    parent = one.get("parent")
    while parent is not None:
        above = by_id[parent].get("severity")
        if above is not None and severity <= above:
            raise ConfigError(
                f"{where}: category {one['id']}: severity = {severity} is invalid: must be above {above}, that of "
                f"{parent}, which contains it. Use {above + 1}"
            )
        parent = by_id[parent].get("parent")


def _check_examples(
    categories: Sequence[Mapping[str, Any]], by_id: Mapping[str, Mapping[str, Any]], *, where: str
) -> None:
    labels: dict[tuple[str, str], bool] = {}
    for one in categories:
        for number, example in enumerate(one.get("examples", ()), start=1):
            if example["label"] not in (0, 1):
                raise ConfigError(f"{where}: category {one['id']}: label of example {number} must be 0 or 1")
            text, label = " ".join(example["text"].split()), bool(example["label"])
            if labels.setdefault((one["id"], text), label) != label:
                raise ConfigError(
                    f"{where}: category {one['id']}: example {number} has two labels. Remove one of the two examples"
                )
    for (name, text), label in labels.items():
        parent = by_id[name].get("parent")
        while label and parent is not None:
            if labels.get((parent, text)) is False:
                raise ConfigError(
                    f"{where}: an example is positive for {name} and negative for {parent}, which contains {name}. "
                    "Change one of its labels"
                )
            parent = by_id[parent].get("parent")


def check_migration(values: Mapping[str, Any], ids: Collection[str], version: int, *, where: str) -> None:
    """ConfigError: a migration's table contradicts itself or the taxonomy. `values` passed `read_fields`."""
    before = values["from"]
    if not 1 <= before < version:
        raise ConfigError(
            f"{where}: from = {before} is invalid: must be a version before {version}, that of this file. "
            f"Use {max(1, version - 1)}"
        )
    old: list[str] = []
    new: list[str] = []
    for name, target in values.get("renamed", {}).items():
        old.append(name)
        new += _texts([target], f"renamed.{name}", where=where)
    for name, sources in values.get("merged", {}).items():
        old += _texts(sources, f"merged.{name}", where=where)
        new.append(name)
    for name, targets in values.get("split", {}).items():
        old.append(name)
        new += _texts(targets, f"split.{name}", where=where)
    old += _texts(values.get("removed", []), "removed", where=where, may_be_empty=True)
    for name in new:
        if name not in ids:
            meant = did_you_mean(name, ids) or f"use one of {', '.join(ids)}"
            raise ConfigError(f"{where}: '{name}' is no category of this version; {meant}")
    for names, kind in ((old, "old"), (new, "new")):
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ConfigError(f"{where}: the {kind} category '{repeated}' is in two rules. Remove one")


def _texts(value: Any, key: str, *, where: str, may_be_empty: bool = False) -> list[str]:
    if isinstance(value, (list, tuple)) and (value or may_be_empty) and all(isinstance(item, str) for item in value):
        return list(value)
    raise ConfigError(f"{where}: {key} is invalid: must be a list of ids, such as ['H', 'V']")

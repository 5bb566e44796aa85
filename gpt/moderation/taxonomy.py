"""Taxonomies of undesired content: categories with parents, severities, definitions and instructions. No torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, did_you_mean
from gpt.files.toml_files import read_toml
from gpt.moderation.taxonomy_rules import (
    CATEGORY_KEYS,
    EXAMPLE_KEYS,
    MIGRATION_KEYS,
    check_categories,
    check_migration,
    check_name,
    read_fields,
)

_SHIPPED = "taxonomies"


@dataclass(frozen=True)
class LabelExample:
    """An example of the instructions: a text, whether the category is positive, and the reason."""

    text: str
    label: bool
    reason: str = ""


@dataclass(frozen=True)
class Category:
    """One output of a classifier. `parent`: the category that contains it."""

    id: str
    title: str
    definition: str
    parent: str | None = None
    severity: int | None = None
    instructions: str = ""
    examples: tuple[LabelExample, ...] = ()


@dataclass(frozen=True)
class Migration:
    """How labels of version `from_version` become labels of the taxonomy that has this table.

    `renamed`: old to new. `merged`: new to several old. `split`: old to several new. `removed`: old.
    """

    from_version: int
    renamed: Mapping[str, str] = field(default_factory=dict)
    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Taxonomy:
    """A checked taxonomy. The order of the categories is that of a classifier's outputs."""

    name: str
    version: int
    categories: tuple[Category, ...]
    migration: Migration | None = None

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(category.id for category in self.categories)

    @property
    def label(self) -> str:
        """Name and version, as files of labels have them: "openai 1"."""
        return f"{self.name} {self.version}"

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """The position of each category's parent, -1 without one."""
        return tuple(-1 if one.parent is None else self.index(one.parent) for one in self.categories)

    def index(self, category: str) -> int:
        """The position of a category. ValueError: there is none with this id."""
        return self.ids.index(category)

    def ancestors(self, category: str) -> tuple[str, ...]:
        """The ids of the parent, its parent and so on."""
        found: list[str] = []
        parent = self.categories[self.index(category)].parent
        while parent is not None:
            found.append(parent)
            parent = self.categories[self.index(parent)].parent
        return tuple(found)

    def values(self) -> dict[str, Any]:
        """Plain values as in a TOML file, from which `parse_taxonomy` makes the same taxonomy."""
        values: dict[str, Any] = {"name": self.name, "version": self.version}
        values["category"] = [_category_values(one) for one in self.categories]
        if self.migration is not None:
            values["migration"] = _migration_values(self.migration)
        return values

    @cached_property
    def digest(self) -> str:
        """sha256 of the content without the migration: equal taxonomies have equal digests, whatever their layout."""
        values = {key: value for key, value in self.values().items() if key != "migration"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy's TOML file. A bare name, such as `moderation_openai`, finds a shipped one.

    ConfigError: there is no such file, or it breaks a rule.
    """
    found = _find(path)
    return parse_taxonomy(read_toml(found, kind="taxonomy"), where=str(path))


def parse_taxonomy(values: Mapping[str, Any], *, where: str) -> Taxonomy:
    """Make a taxonomy from plain values, as a TOML file has them. ConfigError: they break a rule; `where` is named."""
    keys = {"name": str, "version": int, "category": list, "migration": dict}
    table = read_fields(dict(values), keys, needed=("name", "version", "category"), where=where)
    check_name(table["name"], table["version"], where=where)
    rows = []
    for number, row in enumerate(table["category"], start=1):
        own = f"{where}: category {row.get('id', number) if isinstance(row, dict) else number}"
        one = read_fields(row, CATEGORY_KEYS, needed=("id", "title", "definition"), where=own)
        for example in one.get("examples", ()):
            read_fields(example, EXAMPLE_KEYS, needed=("text", "label"), where=f"{own}: examples")
        rows.append(one)
    check_categories(rows, where=where)
    migration = None
    if "migration" in table:
        own = f"{where}: [migration]"
        plan = read_fields(table["migration"], MIGRATION_KEYS, needed=("from",), where=own)
        check_migration(plan, [row["id"] for row in rows], table["version"], where=own)
        migration = _migration(plan)
    return Taxonomy(table["name"], table["version"], tuple(map(_category, rows)), migration)


def shipped_taxonomies() -> dict[str, Path]:
    """The files that come with Triaxial, by the name that `read_taxonomy` takes."""
    folder = Path(str(resources.files("gpt.moderation"))) / _SHIPPED
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _find(path: Path) -> Path:
    shipped = shipped_taxonomies()
    if path.exists() or path.is_symlink() or path.parent != Path("."):
        return path
    if path.name.removesuffix(".toml") in shipped:
        return shipped[path.name.removesuffix(".toml")]
    meant = did_you_mean(path.name, shipped) or f"shipped: {', '.join(shipped)}"
    raise ConfigError(f"{path}: no such taxonomy file, and no shipped taxonomy has this name; {meant}")


def _category(row: Mapping[str, Any]) -> Category:
    examples = tuple(
        LabelExample(one["text"], bool(one["label"]), one.get("reason", "")) for one in row.get("examples", ())
    )
    return Category(**{**row, "examples": examples})


def _migration(plan: Mapping[str, Any]) -> Migration:
    return Migration(
        plan["from"],
        dict(plan.get("renamed", {})),
        {new: tuple(old) for new, old in plan.get("merged", {}).items()},
        {old: tuple(new) for old, new in plan.get("split", {}).items()},
        tuple(plan.get("removed", ())),
    )


def _category_values(one: Category) -> dict[str, Any]:
    values: dict[str, Any] = {"id": one.id, "title": one.title, "definition": one.definition}
    values |= {} if one.parent is None else {"parent": one.parent}
    values |= {} if one.severity is None else {"severity": one.severity}
    values |= {"instructions": one.instructions} if one.instructions else {}
    if one.examples:
        values["examples"] = [
            {"text": example.text, "label": int(example.label), "reason": example.reason} for example in one.examples
        ]
    return values


def _migration_values(one: Migration) -> dict[str, Any]:
    return {
        "from": one.from_version,
        "renamed": dict(one.renamed),
        "merged": {new: list(old) for new, old in one.merged.items()},
        "split": {old: list(new) for old, new in one.split.items()},
        "removed": list(one.removed),
    }

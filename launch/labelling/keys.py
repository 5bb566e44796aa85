"""Give every category of a taxonomy a key of the keyboard, or a number within its family of severities."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from gpt.moderation.taxonomy import Category, Taxonomy

MAX_GRADE = 9  # one digit


@dataclass(frozen=True)
class KeyedCategory:
    """A category with its own key. `grades`: the least severity at which each member of its family is positive.

    Without grades it is yes, no or unsure. With them the labeller also chooses a severity from 0 to `max_grade`.
    """

    category: Category
    key: str  # "" without one: click it
    grades: tuple[tuple[str, int], ...] = ()

    @property
    def max_grade(self) -> int:
        return max((grade for _, grade in self.grades), default=0)


def keyed_categories(taxonomy: Taxonomy) -> list[KeyedCategory]:
    """Return the categories that a labeller sets, in the order of the taxonomy; the members of a family are in one."""
    grades = {category.id: found for category in taxonomy.categories if (found := _grades(taxonomy, category))}
    within = {member for head, found in grades.items() for member in found if member != head}
    shown = [category for category in taxonomy.categories if category.id not in within]
    keys = _letters(shown)
    return [
        KeyedCategory(category, keys[i], tuple(grades.get(category.id, {}).items())) for i, category in enumerate(shown)
    ]


def page_record(keyed: KeyedCategory, taxonomy: Taxonomy) -> dict[str, Any]:
    """A category as the page gets it, with the definitions, instructions and examples of its family."""
    members = {member for member, _ in keyed.grades} or {keyed.category.id}
    about = [
        {
            "id": category.id,
            "title": category.title,
            "definition": category.definition,
            "instructions": category.instructions,
            "examples": [
                {"text": example.text, "label": bool(example.label), "reason": example.reason}
                for example in category.examples
            ],
        }
        for category in taxonomy.categories
        if category.id in members
    ]
    return {
        "id": keyed.category.id,
        "title": keyed.category.title,
        "key": keyed.key,
        "parent": keyed.category.parent,
        "grades": [{"id": member, "from": grade} for member, grade in keyed.grades],
        "max_grade": keyed.max_grade,
        "about": about,
    }


def _grades(taxonomy: Taxonomy, head: Category) -> dict[str, int]:
    """The least severity of each member of a family; empty if the category and its children are no scale.

    They are one if the children have different severities, all above the parent's, and no children of their own.
    """
    children = [category for category in taxonomy.categories if category.parent == head.id]
    parents = {category.parent for category in taxonomy.categories}
    found = {head.id: head.severity or 1}
    for child in children:
        if child.severity is None or child.severity in found.values() or child.id in parents:
            return {}
        found[child.id] = child.severity
    is_scale = children and head.parent is None and min(found.values()) == found[head.id]
    return found if is_scale and max(found.values()) <= MAX_GRADE else {}


def _letters(categories: Sequence[Category]) -> list[str]:
    """One letter for each category: of its id, else of its title, else any that is free; "" once all are taken."""
    taken: list[str] = []
    for category in categories:
        wanted = [*category.id.lower(), *category.title.lower(), *ascii_lowercase]
        taken.append(next((c for c in wanted if c in ascii_lowercase and c not in taken), ""))
    return taken

"""Each category has a key, and a scale of severities is one row with numbers."""

import pytest

from gpt.moderation.taxonomy import parse_taxonomy
from launch.labelling.keys import keyed_categories, page_record


def taxonomy_of(*categories):
    rows = [
        {"id": id_, "title": id_, "definition": "d", **({"parent": parent} if parent else {}),
         **({"severity": severity} if severity else {})}
        for id_, parent, severity in categories
    ]  # fmt: skip
    return parse_taxonomy({"name": "t", "version": 1, "category": rows}, where="t.toml")


def test_letters_are_of_the_id_then_the_title_then_free(taxonomy):
    assert [(one.category.id, one.key) for one in keyed_categories(taxonomy)] == [
        ("A", "a"),
        ("B", "b"),
        ("L", "l"),
        ("X", "x"),
    ]
    keyed = keyed_categories(taxonomy_of(("S", None, None), ("SH", None, None), ("HS", None, None), ("s9", None, None)))
    assert [one.key for one in keyed] == ["s", "h", "a", "b"]


def test_thirty_categories_have_26_keys():
    keyed = keyed_categories(taxonomy_of(*((f"c{i}", None, None) for i in range(30))))
    assert len({one.key for one in keyed if one.key}) == 26
    assert [one.key for one in keyed[-4:]] == [""] * 4


def test_children_of_different_severities_are_a_scale(taxonomy):
    loud = next(one for one in keyed_categories(taxonomy) if one.category.id == "L")
    assert (loud.grades, loud.max_grade) == ((("L", 1), ("L3", 3)), 3)
    assert [one["id"] for one in page_record(loud, taxonomy)["about"]] == ["L", "L3"]


@pytest.mark.parametrize(
    "categories",
    [
        [("P", None, 1), ("Q", "P", 2), ("R", "P", 2)],  # two children of one severity are different kinds
        [("P", None, 1), ("Q", "P", None)],
        [("P", None, None), ("Q", "P", 2), ("R", "Q", 3)],  # a child of a child
    ],
)
def test_other_families_have_a_key_each(categories):
    keyed = keyed_categories(taxonomy_of(*categories))
    assert [(one.category.id, one.grades) for one in keyed] == [(id_, ()) for id_, *_ in categories]

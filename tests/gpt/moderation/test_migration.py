"""Labels of one version of a taxonomy as labels of the next."""

import pytest

from gpt.errors import ConfigError
from gpt.moderation.labels import LabelledText
from gpt.moderation.migration import check_complete, migrated
from gpt.moderation.taxonomy import Taxonomy, parse_taxonomy


def taxonomy(version: int, *ids: str, **migration: object) -> Taxonomy:
    rows = [{"id": name, "title": name, "definition": name} for name in ids]
    values = {"name": "t", "version": version, "category": rows}
    return parse_taxonomy(values | ({"migration": {"from": version - 1, **migration}} if migration else {}), where="t")


OLD = taxonomy(1, "keep", "old", "a", "b", "wide", "gone")
NEW = taxonomy(
    2,
    "keep", "new", "ab", "left", "right", "added",
    renamed={"old": "new"},
    merged={"ab": ["a", "b"]},
    split={"wide": ["left", "right"]},
    removed=["gone"],
)  # fmt: skip


def labels(**values: int) -> dict[str, bool]:
    [found] = migrated([LabelledText("x", "text", {key: bool(value) for key, value in values.items()})], NEW)
    return dict(found.labels)


def test_each_rule():
    assert labels(keep=1, old=0, gone=1) == {"keep": True, "new": False}
    assert labels(a=1) == {"ab": True}
    assert labels(a=0) == {}, "the other one is unknown"
    assert labels(a=0, b=0) == {"ab": False}
    assert labels(a=0, b=1) == {"ab": True}
    assert labels(wide=1) == {}, "which part is positive is unknown"
    assert labels(wide=0) == {"left": False, "right": False}


def test_severities_follow_renamed_categories_only():
    one = LabelledText("x", "t", {"old": True, "a": True, "keep": True}, severity={"old": 2, "a": 3, "keep": 1})
    assert migrated([one], NEW)[0].severity == {"keep": 1, "new": 2}


def test_a_part_may_keep_the_old_name():
    narrowed = taxonomy(
        2, "keep", "wide", "right", split={"wide": ["wide", "right"]}, removed=["old", "a", "b", "gone"]
    )
    check_complete(OLD, narrowed)
    [found] = migrated([LabelledText("x", "t", {"wide": True, "keep": True})], narrowed)
    assert found.labels == {"keep": True}


@pytest.mark.parametrize(
    "rules", [{"renamed": {"a": "keep"}}, {"merged": {"keep": ["a", "b"]}}, {"split": {"a": ["keep", "right"]}}]
)
def test_labels_are_not_put_over_those_of_a_category_that_stays(rules):
    removed = [name for name in OLD.ids if name not in ("keep", "a", *rules.get("merged", {}).get("keep", ()))]
    with pytest.raises(
        ConfigError, match=r"t 2: \[migration\] makes labels of 'keep', which t 1 has too, .*Merge both"
    ):
        check_complete(OLD, taxonomy(2, "keep", "right", **rules, removed=removed))
    check_complete(OLD, taxonomy(2, "keep", merged={"keep": ["keep", "a"]}, removed=["old", "b", "wide", "gone"]))


def test_gaps_and_strangers_are_refused():
    check_complete(OLD, NEW)
    with pytest.raises(ConfigError, match=r"says nothing about old, a, b, wide, gone of t 1"):
        check_complete(OLD, taxonomy(2, "keep", removed=[]))
    with pytest.raises(ConfigError, match=r"'other', which is no category of t 1"):
        check_complete(OLD, taxonomy(2, *OLD.ids, removed=["other"]))
    with pytest.raises(ConfigError, match=r"migrates from 't 2', not from 't 1'"):
        check_complete(OLD, taxonomy(3, *OLD.ids, removed=[]))
    with pytest.raises(ConfigError, match=r"t 2 has no \[migration\]"):
        check_complete(OLD, taxonomy(2, *OLD.ids))
    with pytest.raises(ConfigError, match=r"label 'odd' of 'x' is in neither t 2"):
        labels(odd=1)

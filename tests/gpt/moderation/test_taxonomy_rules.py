"""The rules of a taxonomy's plain values. tests/gpt/moderation/test_taxonomy.py breaks each of them in a file."""

import pytest

from gpt.errors import ConfigError
from gpt.moderation.taxonomy_rules import check_categories, read_fields


def test_optional_fields_may_be_missing_and_needed_ones_not():
    assert read_fields({"a": "x"}, {"a": str, "b": int}, needed=("a",), where="here") == {"a": "x"}
    with pytest.raises(ConfigError, match="here: b is missing"):
        read_fields({"a": "x"}, {"a": str, "b": int}, needed=("b",), where="here")


def test_severities_without_a_parents_are_free():
    check_categories([{"id": "A"}, {"id": "B", "parent": "A", "severity": 1}, {"id": "C", "severity": 9}], where="t")

"""Labelled texts: ids, labellers merged, the matrix of labels, and labels that contradict the taxonomy."""

import hashlib

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.moderation.labels import LabelledText, label_matrix, label_states, merged, text_id
from gpt.moderation.taxonomy import parse_taxonomy

TAXONOMY = parse_taxonomy(
    {
        "name": "fruit",
        "version": 1,
        "category": [
            {"id": "A", "title": "A", "definition": "contains B"},
            {"id": "B", "title": "B", "definition": "contains C", "parent": "A"},
            {"id": "C", "title": "C", "definition": "the worst", "parent": "B"},
        ],
    },
    where="test",
)


def one(name: str, labeller: str = "", severity: dict[str, int] | None = None, **labels: int) -> LabelledText:
    values = {key: bool(value) for key, value in labels.items()}
    return LabelledText(name, f"text of {name}", values, labeller, severity=severity or {})


def test_the_id_is_that_of_the_nfc_form():
    assert text_id("e\u0301") == text_id("\u00e9") == hashlib.sha256("\u00e9".encode()).hexdigest()[:16]
    assert text_id("a") != text_id("b")
    assert text_id("a\ud800") == text_id("a\ufffd"), "as the text is scored"
    assert text_id("\U0001f600") == hashlib.sha256("\U0001f600".encode()).hexdigest()[:16]


def test_labellers_are_merged_by_majority_and_ties_are_unknown():
    lines = [one("x", "a", A=1, B=0), one("y", "a", A=1), one("x", "b", A=1, B=1), one("x", "c", A=0, C=1)]
    found = merged(lines)
    assert [text.id for text in found] == ["x", "y"]
    assert dict(found[0].labels) == {"A": True, "C": True}
    assert dict(merged(lines, rule="any")[0].labels) == {"A": True, "B": True, "C": True}
    assert dict(merged(lines, rule="unanimous")[0].labels) == {"C": True}


def test_the_last_line_of_a_labeller_counts():
    found = merged([one("x", "a", A=1), one("x", "b", A=1), one("x", "a", A=0), one("x", "b", A=0)])
    assert dict(found[0].labels) == {"A": False}


def test_severities_are_the_lower_median():
    levels = [one("x", name, {"A": level}, A=1) for name, level in zip("abcd", (1, 3, 4, 4), strict=True)]
    assert merged(levels)[0].severity == {"A": 3}


def test_the_two_forms_of_one_text_are_merged():
    forms = ["caf\u00e9", "cafe\u0301"]  # composed and decomposed
    [found] = merged([LabelledText(text_id(text), text, {"A": True}, str(i)) for i, text in enumerate(forms)])
    assert (found.text, found.labels) == (forms[0], {"A": True})


def test_one_id_with_two_texts_is_refused():
    with pytest.raises(ConfigError, match="two different texts"):
        merged([LabelledText("x", "one", {}), LabelledText("x", "two", {})])


def test_the_matrix_has_nan_where_unknown_and_fills_parents():
    found = label_matrix([one("x", C=1), one("y", A=0, B=0), one("z", B=1, C=0), one("u")], TAXONOMY)
    wanted = [[1, 1, 1], [0, 0, np.nan], [1, 1, 0], [np.nan] * 3]
    assert np.array_equal(found, np.array(wanted), equal_nan=True)
    assert found.dtype == np.float64
    assert label_matrix([], TAXONOMY).shape == (0, 3)


def test_contradictions_are_refused_by_number_or_unknown():
    texts = [one("x", C=1, A=0, B=1), one("y", A=1)]
    with pytest.raises(ConfigError, match=r"1 of 2 texts contradict fruit 1, first 'x': B is positive"):
        label_matrix(texts, TAXONOMY)
    found = label_matrix(texts, TAXONOMY, contradictory="unknown")
    assert np.array_equal(found, [[np.nan] * 3, [1, np.nan, np.nan]], equal_nan=True)


def test_labels_outside_the_taxonomy_are_refused():
    with pytest.raises(ConfigError, match=r"label 'D' is no category of fruit 1; use A, B, C"):
        label_states([one("x", D=1)], TAXONOMY)

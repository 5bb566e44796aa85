"""States of labels: values of files, votes, parents, and the stream of token files."""

import numpy as np
import pytest

from gpt.token_files.label_states import (
    MAX_CATEGORIES,
    NEGATIVE,
    POSITIVE,
    UNKNOWN,
    contradictions,
    decode_states,
    encode_states,
    label_state,
    label_tokens,
    label_values,
    vote,
    with_ancestors,
    with_descendants,
)


def states(*rows: str) -> np.ndarray:
    """States from marks: "+", "-" and "?"."""
    return np.array([[{"?": UNKNOWN, "-": NEGATIVE, "+": POSITIVE}[mark] for mark in row] for row in rows], np.int8)


@pytest.mark.parametrize(
    ("value", "state"),
    [
        *((value, POSITIVE) for value in (1, True, 1.0, "1", "True", "true", 0.5, "0.75", np.int64(1))),
        *((value, NEGATIVE) for value in (0, False, 0.0, "0", "FALSE", 0.49)),
        *((value, UNKNOWN) for value in (None, "", " ", -1, "-1", float("nan"), "nan", "null")),
    ],
)
def test_values_of_files_become_states(value, state):
    assert label_state(value) == state


@pytest.mark.parametrize("value", [2, -2, "yes", "3", [1], {"a": 1}, float("inf")])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError):  # noqa: PT011
        label_state(value)


def test_votes_by_each_rule():
    labellers = states("++-?", "+--?", "-+-?", "??+?")
    assert (vote(labellers) == states("++-?")[0]).all()
    assert (vote(labellers, rule="any") == states("+++?")[0]).all()
    assert (vote(labellers, rule="unanimous") == states("????")[0]).all()
    assert (vote(states("+", "-")) == UNKNOWN).all(), "a tie is unknown"


def test_a_positive_child_fills_unknown_ancestors_and_contradicts_negative_ones():
    parents = (-1, 0, 1)  # 0 contains 1, which contains 2
    given = states("??+", "-?+", "+-+", "?+?", "??-")
    assert (with_ancestors(given, parents) == states("+++", "-++", "+-+", "++?", "??-")).all()
    found = contradictions(given, parents)
    assert found.tolist() == [[False] * 3, [False, False, True], [False, False, True], [False] * 3, [False] * 3]


def test_a_negative_category_fills_unknown_descendants():
    given = states("-??", "?-?", "-?+", "+??", "???", "-+?")
    assert (with_descendants(given, (-1, 0, 1)) == states("---", "?--", "--+", "+??", "???", "-+-")).all()
    assert (with_descendants(given, (1, 2, -1)) == states("-??", "--?", "-?+", "+??", "???", "-+?")).all()


@pytest.mark.parametrize("c", [1, 8, 10, 11, 20, 37, MAX_CATEGORIES])
def test_states_survive_the_stream(c):
    rng = np.random.default_rng(c)
    given = rng.integers(0, 3, (5, 7, c), dtype=np.int8)
    codes = encode_states(given)
    assert codes.shape == (5, 7, label_tokens(c))
    assert 0 <= codes.min() <= codes.max() < label_values(c) < 65500
    assert (decode_states(codes, c) == given).all()


def test_rows_without_documents_have_no_states():
    assert decode_states(np.zeros((0, label_tokens(12)), np.int64), 12).shape == (0, 12)


def test_the_value_is_a_number_in_base_three():
    given = np.zeros(12, np.int8)
    given[[0, 1, 9, 11]] = 1, 2, 2, 1
    assert encode_states(given).tolist() == [1 + 2 * 3 + 2 * 3**9, 3]


@pytest.mark.parametrize("code", [-1, 9, 3**10])
def test_values_of_another_taxonomy_are_noticed(code):
    with pytest.raises(ValueError, match="2 categories"):
        decode_states(np.array([code]), 2)

"""The states of a text's labels, and their form in token files: the stream `labels`.

A label is unknown, negative or positive. The stream has the documents of the token file, with the same lengths. The
last token of a document has the value sum(state[i] * 3**i) of categories 0 to 9, the token before it that of
categories 10 to 19, and so on. All other values are 0. Ten categories keep each value below 65,500, so that the file
has two bytes a token.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

UNKNOWN, NEGATIVE, POSITIVE = 0, 1, 2
MAX_CATEGORIES = 100
_IN_A_TOKEN = 10
VoteRule = Literal["majority", "any", "unanimous"]
States = NDArray[np.int8]
_WORDS = {"": UNKNOWN, "null": UNKNOWN, "nan": UNKNOWN, "false": NEGATIVE, "true": POSITIVE}


def label_state(value: Any) -> int:
    """The state of a label as files have it.

    0, false, 1 and true, as values or text; null, an empty text and -1 (as in Jigsaw's files) are unknown. A share
    between 0 and 1, such as of votes, is positive from 0.5 on. ValueError: any other value.
    """
    if value is None or isinstance(value, bool):
        return UNKNOWN if value is None else POSITIVE if value else NEGATIVE
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _WORDS:
            return _WORDS[word]
        value = float(word)
    if isinstance(value, (int, float, np.integer, np.floating)):
        if value != value or value == -1:
            return UNKNOWN
        if 0 <= value <= 1:
            return POSITIVE if value >= 0.5 else NEGATIVE
    raise ValueError("it is neither 0 nor 1, nor a share between them")


class LabelValueError(ValueError):
    """The label of the category `name` is neither 0 nor 1, nor a share between them. The message has no text."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the label of '{name}' is invalid: it is neither 0 nor 1, nor a share between them")
        self.name = name


def record_states(values: Mapping[str, Any], ids: Sequence[str]) -> dict[str, int]:
    """The states of a record's labels: those of its object `labels`, else the fields with the ids of categories.

    TypeError: `labels` is no object. KeyError, with the name: a label outside `ids`. LabelValueError: another value.
    """
    given = values.get("labels")
    if given is None:
        given = {name: values[name] for name in ids if name in values}
    if not isinstance(given, Mapping):
        raise TypeError("labels is no object")
    states = {}
    for name, value in given.items():
        if name not in ids:
            raise KeyError(str(name)[:60])
        try:
            states[name] = label_state(value)
        except ValueError:
            raise LabelValueError(name) from None
    return states


def vote(states: States, *, rule: VoteRule = "majority") -> States:
    """The state of each category by several labellers: (labellers, c) to (c,). Unknown states do not vote.

    `majority`: the more frequent state; unknown if both are equally frequent. `any`: positive if one is. `unanimous`:
    unknown unless all agree.
    """
    positive, negative = (states == POSITIVE).sum(0), (states == NEGATIVE).sum(0)
    if rule == "majority":
        is_positive, is_negative = positive > negative, negative > positive
    elif rule == "any":
        is_positive, is_negative = positive > 0, (negative > 0) & (positive == 0)
    else:
        is_positive, is_negative = (positive > 0) & (negative == 0), (negative > 0) & (positive == 0)
    return np.where(is_positive, POSITIVE, np.where(is_negative, NEGATIVE, UNKNOWN)).astype(np.int8)


def with_ancestors(states: States, parents: Sequence[int]) -> States:
    """The states (..., c) in which a positive child makes its unknown ancestors positive. `parents`: -1 without one."""
    filled = states.copy()
    for child in range(len(parents)):
        parent = parents[child]
        while parent >= 0:
            fill = (states[..., child] == POSITIVE) & (filled[..., parent] == UNKNOWN)
            filled[..., parent] = np.where(fill, POSITIVE, filled[..., parent])
            parent = parents[parent]
    return filled


def with_descendants(states: States, parents: Sequence[int]) -> States:
    """The states (..., c) in which a negative category makes its unknown descendants negative: it contains them."""
    filled = states.copy()
    for child in range(len(parents)):
        parent = parents[child]
        while parent >= 0:
            fill = (states[..., parent] == NEGATIVE) & (filled[..., child] == UNKNOWN)
            filled[..., child] = np.where(fill, NEGATIVE, filled[..., child])
            parent = parents[parent]
    return filled


def contradictions(states: States, parents: Sequence[int]) -> NDArray[np.bool_]:
    """Whether a category is positive and one of its ancestors is negative: (..., c) to (..., c), marks the child."""
    found = np.zeros(states.shape, dtype=np.bool_)
    for child in range(len(parents)):
        parent = parents[child]
        while parent >= 0:
            found[..., child] |= (states[..., child] == POSITIVE) & (states[..., parent] == NEGATIVE)
            parent = parents[parent]
    return found


def label_tokens(n_categories: int) -> int:
    """How many of a document's last tokens carry its labels."""
    return -(-n_categories // _IN_A_TOKEN)


def label_values(n_categories: int) -> int:
    """How many values the stream may have: the vocabulary of its token file."""
    return int(3 ** min(n_categories, _IN_A_TOKEN))


def encode_states(states: States) -> NDArray[np.int64]:
    """The values of the stream for states (..., c): (..., label_tokens(c)), the last token's first."""
    c = states.shape[-1]
    k = label_tokens(c)
    padded = np.zeros((*states.shape[:-1], k * _IN_A_TOKEN), dtype=np.int64)
    padded[..., :c] = states
    powers = 3 ** np.arange(_IN_A_TOKEN, dtype=np.int64)
    coded: NDArray[np.int64] = padded.reshape(*states.shape[:-1], k, _IN_A_TOKEN) @ powers
    return coded


def decode_states(codes: NDArray[Any], n_categories: int) -> States:
    """The states (..., n_categories) of a document's values (..., label_tokens(n_categories)), the last token's first.

    ValueError: a value that no states have, so the stream is of another taxonomy or damaged.
    """
    codes = np.asarray(codes, dtype=np.int64)
    powers = 3 ** np.arange(_IN_A_TOKEN, dtype=np.int64)
    states = codes[..., None] // powers % 3
    states = states.reshape(*codes.shape[:-1], codes.shape[-1] * _IN_A_TOKEN)  # -1 is unknown for 0 documents
    if codes.size and (codes.min() < 0 or codes.max() >= 3**_IN_A_TOKEN or states[..., n_categories:].any()):
        raise ValueError(f"the labels are not those of {n_categories} categories")
    return states[..., :n_categories].astype(np.int8)

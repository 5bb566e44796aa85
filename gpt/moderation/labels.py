"""Labelled texts: the labels of several labellers merged, and labels as a matrix. No torch."""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.moderation.taxonomy import Taxonomy
from gpt.token_files.label_states import (
    NEGATIVE,
    POSITIVE,
    UNKNOWN,
    States,
    VoteRule,
    contradictions,
    vote,
    with_ancestors,
)


@dataclass(frozen=True)
class LabelledText:
    """A text with the labels that one labeller, or several together, gave it. A category without a label is unknown."""

    id: str
    text: str
    labels: Mapping[str, bool]
    labeller: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    severity: Mapping[str, int] = field(default_factory=dict)
    source: str = ""


def text_id(text: str) -> str:
    """The id of a text that has none: the first 16 hex digits of the sha256 of its NFC form in UTF-8.

    Half of a surrogate pair, which JSON can express and UTF-8 cannot, counts as U+FFFD.
    """
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return hashlib.sha256(_nfc(whole).encode()).hexdigest()[:16]


def merged(texts: Iterable[LabelledText], *, rule: VoteRule = "majority") -> list[LabelledText]:
    """One text for each id, in the order of their first lines. `rule`: as for `vote`; ties are unknown.

    The last line of a labeller about a text replaces the earlier ones. Lines without a labeller all count. Severities
    are the lower median. ConfigError: two texts, in NFC, have one id.
    """
    by_id: dict[str, list[LabelledText]] = {}
    for one in texts:
        lines = by_id.setdefault(one.id, [])
        if lines and lines[0].text != one.text and _nfc(lines[0].text) != _nfc(one.text):
            raise ConfigError(
                f"id = '{one.id}' is invalid: two different texts have it. Leave ids out: they are then made of texts"
            )
        if one.labeller:
            lines[:] = [line for line in lines if line.labeller != one.labeller]
        lines.append(one)
    return [_merge(lines, rule) for lines in by_id.values()]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _merge(lines: Sequence[LabelledText], rule: VoteRule) -> LabelledText:
    if len(lines) == 1:
        return lines[0]
    ids = list(dict.fromkeys(name for line in lines for name in line.labels))
    states = vote(np.stack([_states(line, ids) for line in lines]), rule=rule)
    labels = {
        name: bool(state == POSITIVE) for name, state in zip(ids, states.tolist(), strict=True) if state != UNKNOWN
    }
    levels: dict[str, list[int]] = {}
    for line in lines:
        for name, level in line.severity.items():
            levels.setdefault(name, []).append(level)
    return replace(
        lines[0],
        labels=labels,
        labeller="",
        groups={name: value for line in reversed(lines) for name, value in line.groups.items()},
        severity={name: median_low(values) for name, values in levels.items()},
    )


def _states(text: LabelledText, ids: Sequence[str]) -> States:
    found = [UNKNOWN if name not in text.labels else POSITIVE if text.labels[name] else NEGATIVE for name in ids]
    return np.array(found, dtype=np.int8)


def label_states(texts: Sequence[LabelledText], taxonomy: Taxonomy) -> States:
    """The states (n, c) of the labels as they were given. ConfigError: a label outside the taxonomy."""
    for one in texts:
        for name in one.labels:
            if name not in taxonomy.ids:
                raise ConfigError(
                    f"label '{name}' is no category of {taxonomy.label}; use {', '.join(taxonomy.ids)}, or migrate the "
                    "file with `triaxial moderate taxonomy migrate`"
                )
    if not texts:
        return np.zeros((0, len(taxonomy.ids)), dtype=np.int8)
    return np.stack([_states(one, taxonomy.ids) for one in texts])


def label_matrix(
    texts: Sequence[LabelledText],
    taxonomy: Taxonomy,
    *,
    contradictory: Literal["refuse", "unknown"] = "refuse",
) -> NDArray[np.float64]:
    """The labels (n, c): 1, 0, NaN where unknown. A positive child makes its ancestors positive where unknown.

    `contradictory` labels, a positive child of a negative parent: ConfigError with their number, or both are unknown.
    ConfigError: also a label outside the taxonomy.
    """
    states = label_states(texts, taxonomy)
    wrong = contradictions(states, taxonomy.parents)
    if wrong.any():
        if contradictory == "refuse":
            raise contradiction_error(wrong, texts, taxonomy)
        states = _without(states, wrong, taxonomy)
    filled = with_ancestors(states, taxonomy.parents)
    return np.where(filled == UNKNOWN, np.nan, (filled == POSITIVE).astype(np.float64))


def contradiction_error(wrong: NDArray[np.bool_], texts: Sequence[LabelledText], taxonomy: Taxonomy) -> ConfigError:
    """The error for positive children (n, c) of negative parents: names their number, and the first text by its id."""
    row, child = (int(i) for i in np.argwhere(wrong)[0])
    name = taxonomy.ids[child]
    return ConfigError(
        f"{int(wrong.any(1).sum()):,} of {len(texts):,} texts contradict {taxonomy.label}, first '{texts[row].id}': "
        f"{name} is positive, but {' or '.join(taxonomy.ancestors(name))}, which contains it, is negative. "
        "Correct them, or leave such texts out with `triaxial moderate labels --contradictions drop`"
    )


def _without(states: States, wrong: NDArray[np.bool_], taxonomy: Taxonomy) -> States:
    cleared = states.copy()
    for child, name in enumerate(taxonomy.ids):
        for place in (child, *(taxonomy.index(one) for one in taxonomy.ancestors(name))):
            clear = wrong[:, child] & ((place == child) | (states[:, place] == NEGATIVE))
            cleared[clear, place] = UNKNOWN
    return cleared

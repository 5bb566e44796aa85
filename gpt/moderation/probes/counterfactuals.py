"""Counterfactuals: sentences that differ in one word, such as the name of a group, should have nearly equal scores.

Templates and words are two CSV files in the form of the Madlibs of Dixon and others (2018). Words have `type`,
`subtype`, `connotation` and `word`. A template has `template` (a name), `toxicity` (toxic or nontoxic) and `phrase`,
whose slots name the words that fit: `{type|verb_connotation|toxic}`.
"""

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt.errors import ConfigError
from gpt.moderation.measures.ranking import auroc
from gpt.moderation.probes.scoring import Score, Scores, checked_scores

COMPARED = "identity"  # the type of the slot that is varied
FILLINGS = 4
_SLOT = re.compile(r"\{([^{}]*)\}")
_TOXICITY = {"toxic": True, "nontoxic": False}


@dataclass(frozen=True)
class Counterfactual:
    """A sentence. Those of one `set` differ in `word` alone."""

    text: str
    word: str
    subtype: str
    set: int
    positive: bool


@dataclass(frozen=True)
class WordGap:
    """One word in all its sentences. `gap`: its mean score minus the mean of the same sets.

    `auroc`: of positive against negative sentences with this word (the subgroup AUC); NaN with one class.
    """

    word: str
    subtype: str
    sentences: int
    mean_score: float
    gap: float
    flagged_negatives: int
    negatives: int
    auroc: float


@dataclass(frozen=True)
class CounterfactualGap:
    """All sentences. The range of a set is its largest score minus its smallest; `worst_range` is the largest range."""

    category: str
    sentences: int
    sets: int
    mean_range: float
    worst_range: float
    false_positive_share: float
    auroc: float
    words: tuple[WordGap, ...]


def counterfactuals(
    templates: Sequence[Mapping[str, str]],
    words: Sequence[Mapping[str, str]],
    *,
    compared: str = COMPARED,
    fillings: int = FILLINGS,
    seed: int = 0,
    where: str = "templates",
) -> list[Counterfactual]:
    """Fill the templates: each word of the type `compared`, with up to `fillings` fillings of the other slots.

    Both arguments are rows of CSV files. Templates without such a slot are left out. ConfigError: a row lacks a column,
    a slot is malformed, no word fits a slot, or nothing is left.
    """
    _check_columns(words, ("type", "word"), where="words")
    found: list[Counterfactual] = []
    number = itertools.count()
    _check_columns(templates, ("phrase", "toxicity"), where=where)
    for row, template in enumerate(templates, start=1):
        here = f"{where}, template {row}"
        positive = _TOXICITY.get(template["toxicity"])
        if positive is None:
            raise ConfigError(f"{here}: toxicity is invalid: must be 'toxic' or 'nontoxic'")
        slots = [_conditions(slot, where=here) for slot in _SLOT.findall(template["phrase"])]
        fitting = [[word for word in words if _fits(word, slot)] for slot in slots]
        if not all(fitting):
            raise ConfigError(f"{here}: no word fits one of its slots. Add words of this type and connotation")
        varied = [i for i, slot in enumerate(slots) if slot.get("type") == compared]
        if len(varied) != 1:
            continue
        parts = _SLOT.split(template["phrase"])[::2]  # the text between the slots
        draw = random.Random(f"{seed} {row}")
        for _ in range(fillings if len(slots) > 1 else 1):
            chosen = [draw.choice(options)["word"] for options in fitting]
            this = next(number)
            for word in fitting[varied[0]]:
                filled = [word["word"] if i == varied[0] else text for i, text in enumerate(chosen)]
                text = "".join(part + gap for part, gap in itertools.zip_longest(parts, filled, fillvalue=""))
                found.append(Counterfactual(text, word["word"], word.get("subtype") or "", this, positive))
    if not found:
        raise ConfigError(f"{where}: no template has exactly one slot of the type '{compared}'")
    return found


def counterfactual_gap(
    score: Score, sentences: Sequence[Counterfactual], categories: Sequence[str], *, thresholds: Sequence[float]
) -> list[CounterfactualGap]:
    """Measure how much the word decides the score, for each category. Thresholds (c,)."""
    scores = checked_scores(score, [one.text for one in sentences])
    return [_gap(category, sentences, scores[:, i], threshold=thresholds[i]) for i, category in enumerate(categories)]


def _gap(category: str, sentences: Sequence[Counterfactual], scores: Scores, *, threshold: float) -> CounterfactualGap:
    sets = np.array([one.set for one in sentences])
    positive = np.array([one.positive for one in sentences])
    n_sets = int(sets.max()) + 1
    means = np.bincount(sets, scores, n_sets) / np.maximum(np.bincount(sets, minlength=n_sets), 1)
    ranges = np.array([np.ptp(scores[sets == i]) for i in np.unique(sets)])
    rows: dict[tuple[str, str], list[int]] = {}
    for i, one in enumerate(sentences):
        rows.setdefault((one.subtype, one.word), []).append(i)
    words = []
    for (subtype, word), index in sorted(rows.items()):
        own, negative = scores[index], ~positive[index]
        words.append(
            WordGap(
                word=word,
                subtype=subtype,
                sentences=len(index),
                mean_score=float(own.mean()),
                gap=float((own - means[sets[index]]).mean()),
                flagged_negatives=int((negative & (own >= threshold)).sum()),
                negatives=int(negative.sum()),
                auroc=auroc(positive[index].astype(float), own),
            )
        )
    negatives = int((~positive).sum())
    return CounterfactualGap(
        category=category,
        sentences=len(sentences),
        sets=len(ranges),
        mean_range=float(ranges.mean()),
        worst_range=float(ranges.max()),
        false_positive_share=float((scores[~positive] >= threshold).mean()) if negatives else math.nan,
        auroc=auroc(positive.astype(float), scores),
        words=tuple(words),
    )


def _conditions(slot: str, *, where: str) -> dict[str, str]:
    """`type|verb_connotation|toxic` as {"type": "verb", "connotation": "toxic"}."""
    pairs = [part.split("|") for part in slot.split("_")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ConfigError(f"{where}: a slot is malformed. Write it as {{type|verb_connotation|toxic}}")
    return {pair[0]: pair[1] for pair in pairs}


def _fits(word: Mapping[str, str], conditions: Mapping[str, str]) -> bool:
    return all((word.get(column) or "") == value for column, value in conditions.items())


def _check_columns(rows: Sequence[Mapping[str, str]], columns: Sequence[str], *, where: str) -> None:
    if not rows:
        raise ConfigError(f"{where} has no rows")
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if not row.get(column):
                raise ConfigError(f"{where}, row {number}: column '{column}' is missing or empty")

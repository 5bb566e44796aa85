"""Counterfactual sets differ in one word, and the gap finds a word that a classifier favours."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.moderation.probes.counterfactuals import counterfactual_gap, counterfactuals

DATA = Path(__file__).resolve().parents[4].parent / "shared/data/other/moderation"
WORDS = [
    *({"type": "identity", "subtype": "colour", "connotation": "neutral", "word": word} for word in ("red", "blue")),
    *({"type": "verb", "connotation": "nontoxic", "word": word} for word in ("like", "see", "draw")),
    {"type": "verb", "connotation": "toxic", "word": "drop"},
]
TEMPLATES = [
    {"phrase": "we {type|verb_connotation|nontoxic} {type|identity_connotation|neutral} boats", "toxicity": "nontoxic"},
    {"phrase": "{type|verb_connotation|toxic} {type|identity} boats", "toxicity": "toxic"},
    {"phrase": "we {type|verb_connotation|nontoxic} boats", "toxicity": "nontoxic"},
]


def test_the_sentences_of_a_set_differ_in_the_word_alone():
    found = counterfactuals(TEMPLATES, WORDS, fillings=3)
    assert len(found) == 2 * 3 * 2
    for number in {one.set for one in found}:
        members = [one for one in found if one.set == number]
        assert {one.word for one in members} == {"red", "blue"}
        assert len({one.text.replace(one.word, "*") for one in members}) == 1
    assert {one.positive for one in found} == {True, False}
    assert counterfactuals(TEMPLATES, WORDS, fillings=3) == found
    assert "{" not in "".join(one.text for one in found)


def test_the_gap_finds_the_word_that_the_classifier_favours():
    def score(texts):
        return np.array([[0.1 + 0.3 * ("red" in text) + 0.4 * ("drop" in text)] for text in texts])

    (found,) = counterfactual_gap(score, counterfactuals(TEMPLATES, WORDS), ["A"], thresholds=[0.35])
    assert found.mean_range == pytest.approx(0.3)
    assert found.worst_range == pytest.approx(0.3)
    assert found.sets == 8
    assert found.auroc == 1
    assert found.false_positive_share == 0.5
    blue, red = found.words
    assert (red.word, red.subtype, red.sentences) == ("red", "colour", 8)
    assert red.gap == pytest.approx(0.15)
    assert blue.gap == pytest.approx(-0.15)
    assert (red.flagged_negatives, red.negatives, blue.flagged_negatives) == (4, 4, 0)


def test_one_class_has_no_auroc():
    (found,) = counterfactual_gap(
        lambda texts: np.zeros((len(texts), 1)), counterfactuals(TEMPLATES[:1], WORDS), ["A"], thresholds=[0.5]
    )
    assert math.isnan(found.auroc)


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        ({"phrase": "we {verb} boats", "toxicity": "toxic"}, "slot is malformed"),
        ({"phrase": "we {type|noun}", "toxicity": "toxic"}, "no word fits"),
        ({"phrase": "we {type|identity}", "toxicity": "maybe"}, "toxicity is invalid"),
        ({"phrase": "", "toxicity": "toxic"}, "column 'phrase' is missing"),
        ({"phrase": "boats", "toxicity": "toxic"}, "no template has"),
    ],
)
def test_refuses_templates_that_cannot_be_filled(template, rule):
    with pytest.raises(ConfigError, match=rule):
        counterfactuals([template], WORDS)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_reads_madlibs():
    rows = {}
    for name in ("sentence_templates", "words"):
        with (DATA / f"madlibs-{name}.csv").open(encoding="utf-8") as file:
            rows[name] = list(csv.DictReader(file))
    found = counterfactuals(rows["sentence_templates"], rows["words"])
    assert len({one.word for one in found}) == 51  # neutral identities
    assert len({one.set for one in found}) == 2 * (4 + 1 + 4 + 4 + 4)  # the last template has no identity
    assert sum(one.positive for one in found) * 2 == len(found)

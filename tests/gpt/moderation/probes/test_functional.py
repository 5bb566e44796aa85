"""Functional suites of three forms give the same cases, and are counted by function."""

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.moderation.probes.functional import functional_cases, functional_results, totals

DATA = Path(__file__).resolve().parents[4].parent / "shared/data/other/moderation"
OWN = [
    ("line 1", {"function": "boats", "text": "a boat", "label": 1}),
    ("line 2", {"function": "boats", "text": "a ship", "label": True}),
    ("line 3", {"function": "trains", "text": "a train", "label": "negative", "target": "rail", "id": "t3"}),
]


def score(texts):
    return np.array([[0.0, 0.9 if "boat" in text or "train" in text else 0.1] for text in texts])


def test_counts_right_decisions_by_function():
    cases = functional_cases(OWN)
    assert [case.id for case in cases] == ["line 1", "line 2", "t3"]
    boats, trains = functional_results(score, cases, 1)
    assert (boats.function, boats.positive, boats.cases, boats.right) == ("boats", True, 2, 1)
    assert (trains.function, trains.positive, trains.cases, trains.right) == ("trains", False, 1, 0)
    assert boats.mean_score == pytest.approx(0.5)
    assert boats.accuracy.low < 0.5 < boats.accuracy.high
    found = totals([boats, trains])
    assert (found["all"].estimate, found["positive"].estimate, found["negative"].estimate) == (1 / 3, 0.5, 0)
    assert [one.target for one in functional_results(score, cases, 1, by_target=True)] == ["", "rail"]
    assert functional_results(score, cases, 1, threshold=0.05)[0].right == 2


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"text": "a", "label": 1}, "no column 'function'"),
        ({"function": "f", "label": 1}, "no column 'text'"),
        ({"function": "f", "text": "a", "label": "perhaps"}, "label is invalid"),
    ],
)
def test_refuses_a_row_that_lacks_something_and_quotes_no_text(row, rule):
    with pytest.raises(ConfigError, match=rule):
        functional_cases([("suite.csv, line 2", row)])


def test_refuses_an_empty_suite():
    with pytest.raises(ConfigError, match="no cases"):
        functional_cases([])


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_reads_hatecheck_and_xstest():
    with gzip.open(DATA / "hatecheck-test_suite_cases.csv.gz", "rt", encoding="utf-8") as file:
        cases = functional_cases([("row", row) for row in csv.DictReader(file)])
    assert (len(cases), len({case.function for case in cases})) == (3_728, 29)
    assert sum(case.positive for case in cases) == 2_563
    assert all(case.positive == case.function.endswith("_h") for case in cases)
    with (DATA / "xstest_prompts.csv").open(encoding="utf-8") as file:
        cases = functional_cases([("row", row) for row in csv.DictReader(file)])
    assert Counter(case.positive for case in cases) == {False: 250, True: 200}

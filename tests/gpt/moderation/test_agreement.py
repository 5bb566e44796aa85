"""Cohen's kappa equals the formula on published counts, and its interval the spread of simulated labellers."""

import math

import numpy as np
import pytest

from gpt.moderation.agreement import agreements, cohen_kappa


def test_kappa_equals_the_formula():
    kappa = cohen_kappa(20, 5, 10, 15)  # 0.7 observed, 0.5 by chance
    assert kappa.estimate == pytest.approx(0.4, abs=1e-12)
    assert cohen_kappa(7, 0, 0, 9).estimate == 1.0
    assert cohen_kappa(0, 5, 5, 0).estimate == pytest.approx(-1.0, abs=1e-12)
    assert math.isnan(cohen_kappa(0, 0, 0, 9).estimate), "chance alone agrees always"
    assert math.isnan(cohen_kappa(0, 0, 0, 0).estimate)


def test_the_interval_has_the_spread_of_simulated_labellers():
    p, n = [0.3, 0.08, 0.12, 0.5], 400
    draws = np.random.default_rng(0).multinomial(n, p, size=4000)
    found = np.array([cohen_kappa(*draw.tolist()).estimate for draw in draws])
    middle = cohen_kappa(*(int(n * share) for share in p))
    assert (middle.high - middle.low) / 2 / 1.959964 == pytest.approx(found.std(), rel=0.05)


def test_only_texts_with_both_labels_count():
    labels = {
        "ana": {"t1": {"A": 1, "B": 0}, "t2": {"A": 0}, "t3": {"A": 1}},
        "ben": {"t1": {"A": True, "B": None}, "t2": {"A": True}, "t9": {"A": 1}},
        "eva": {"t8": {"A": 1}},
    }
    found = agreements(labels, ["A", "B"])
    assert [(one.category, one.first, one.second, one.n) for one in found] == [
        ("A", "ana", "ben", 2),
        ("B", "ana", "ben", 0),
    ]
    assert (found[0].both, found[0].only_first, found[0].only_second, found[0].neither) == (1, 0, 1, 0)
    assert found[0].observed == 0.5
    assert math.isnan(found[1].observed)

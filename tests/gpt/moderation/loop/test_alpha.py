"""Krippendorff's alpha and Fleiss's kappa equal the formula over pairs of votes and the published examples."""

import math
from itertools import permutations

import numpy as np
import pytest

from gpt.moderation.loop.alpha import fleiss_kappa, krippendorff_alpha


def alpha_over_pairs(votes):
    """1 - D_o / D_e, each a mean over ordered pairs of votes; D_o weighs the pairs of a text by 1 / (m - 1)."""
    texts = [row[~np.isnan(row)] for row in votes]
    texts = [row for row in texts if len(row) > 1]
    everything = np.concatenate(texts)
    observed = sum(sum(a != b for a, b in permutations(row, 2)) / (len(row) - 1) for row in texts) / len(everything)
    expected = np.mean([a != b for a, b in permutations(everything, 2)])
    return 1 - observed / expected


@pytest.mark.parametrize("seed", range(6))
def test_alpha_equals_the_formula_over_pairs(seed):
    rng = np.random.default_rng(seed)
    votes = rng.choice([0.0, 1.0, np.nan], p=[0.5, 0.3, 0.2], size=(30, 4))
    assert krippendorff_alpha(votes) == pytest.approx(alpha_over_pairs(votes), abs=1e-12)


def test_alpha_of_krippendorffs_binary_example():
    """Two observers, ten texts: alpha = 0.095 ("Computing Krippendorff's Alpha-Reliability", 2011, part A)."""
    votes = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]], dtype=float).T
    assert krippendorff_alpha(votes) == pytest.approx(0.095, abs=5e-4)


@pytest.mark.parametrize("seed", range(3))
def test_fleiss_kappa_equals_the_definition_by_random_pairs_of_votes(seed):
    votes = (np.random.default_rng(seed).random((25, 3)) < 0.4).astype(float)
    agree = np.mean([[a == b for a, b in permutations(row, 2)] for row in votes])
    p = votes.mean()
    chance = p**2 + (1 - p) ** 2
    assert fleiss_kappa(votes) == pytest.approx((agree - chance) / (1 - chance), abs=1e-12)


def test_undefined_agreement_is_nan_and_uneven_votes_are_refused():
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    assert math.isnan(krippendorff_alpha([[1, np.nan]]))
    assert math.isnan(fleiss_kappa([[1, 1]]))
    assert krippendorff_alpha([[1, 1], [0, 0]]) == fleiss_kappa([[1, 1], [0, 0]]) == 1
    with pytest.raises(ValueError, match="same number of votes"):
        fleiss_kappa([[1, 1, np.nan], [0, 0, 0]])

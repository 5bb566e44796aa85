"""The laws are recovered from their own points, and best-of-n's KL is that of a continuous reward."""

import math

import numpy as np
import pytest

from gpt.post_training.analysis.over_optimisation import RewardLaw, best_of_n_kl, fit_law


@pytest.mark.parametrize("form", ["best of n", "RL"])
def test_a_law_is_recovered_from_its_points(form):
    law = RewardLaw(form, start=0.4, alpha=1.2, beta=0.3, r_squared=1.0)
    d = np.linspace(0.5, 9, 40)
    found = fit_law(d, law.reward(d), form=form)
    assert (found.start, found.alpha, found.beta) == pytest.approx((0.4, 1.2, 0.3), abs=1e-9)
    assert found.r_squared == pytest.approx(1.0)
    assert found.text == f"0.4 + d (1.2 - 0.3 {'d' if form == 'best of n' else 'log d'})"
    assert RewardLaw(form, 0.0, 1.0, -0.5, 1.0).text.startswith("0 + d (1 + 0.5 ")
    noise = 0.02 * np.random.default_rng(0).normal(size=40)
    noisy = fit_law(d, law.reward(d) + noise, form=form)
    assert (noisy.alpha, noisy.beta) == pytest.approx((1.2, 0.3), abs=0.05)
    other = fit_law(d, law.reward(d), form="RL" if form == "best of n" else "best of n")
    assert other.r_squared < 0.9999


@pytest.mark.parametrize("form", ["best of n", "RL"])
def test_the_peak_is_where_the_reward_is_highest(form):
    law = RewardLaw(form, 0.0, alpha=1.0, beta=0.35, r_squared=1.0)
    d = np.linspace(0.01, 20, 20_001)
    assert law.peak == pytest.approx(d[law.reward(d).argmax()], abs=2e-3)
    assert RewardLaw(form, 0.0, 1.0, -0.1, 1.0).peak == math.inf


def test_too_few_or_equal_points_give_no_law():
    assert fit_law(np.arange(1.0, 4), np.arange(3.0), form="RL") is None
    assert fit_law(np.full(10, 2.0), np.arange(10.0), form="best of n") is None
    assert fit_law(np.linspace(0, 0.2, 10), np.arange(10.0), form="RL") is None, "KL is noise there"
    d = np.linspace(0.5, 5, 12)
    rewards = np.where(np.arange(12) == 3, np.nan, d)
    assert fit_law(d, rewards, form="best of n").alpha == pytest.approx(1.0)


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_the_kl_of_best_of_n_is_the_integral_over_its_density(n):
    """By the rank u of a response, uniform in [0, 1], best-of-n has the density n u^(n - 1)."""
    u = (np.arange(200_000) + 0.5) / 200_000
    density = n * u ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx(float((density * np.log(np.maximum(density, 1e-300))).mean()), abs=1e-3)

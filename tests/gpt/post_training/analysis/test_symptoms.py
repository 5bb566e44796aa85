"""Single rules at the edges of their bands; test_diagnosis.py has whole runs."""

import numpy as np

from gpt.post_training.analysis import symptoms
from gpt.post_training.analysis.series import IterationSeries, Span


def series(values):
    return IterationSeries(np.arange(1, len(values) + 1), np.asarray(values, dtype=float))


def test_kl_explodes_by_height_or_by_growth():
    assert symptoms.exploding_kl({"kl": series([19.0] * 30)}) is None
    assert symptoms.exploding_kl({"kl": series([21.0] * 30)}).span == Span(1, 30, lasting=True)
    grown = symptoms.exploding_kl({"kl": series([2.0] * 15 + [12.0] * 8)})
    assert grown.span == Span(16, 23, lasting=True)
    slow = series(np.linspace(2, 15, 200))
    assert symptoms.exploding_kl({"kl": slow}) is None


def test_noise_around_kl_zero_is_not_negative_kl():
    rng = np.random.default_rng(0)
    assert symptoms.negative_kl({"kl": series(0.03 * rng.normal(size=200))}) is None


def test_a_critic_may_be_bad_while_it_warms_up():
    assert symptoms.dead_critic({"explained_variance": series([-1.0] * 12 + [0.4] * 10)}) is None
    found = symptoms.dead_critic({"explained_variance": series([0.4] * 20 + [-0.2] * 10)})
    assert found.span == Span(21, 30, lasting=True)


def test_a_gold_reward_that_stays_at_its_peak_is_no_over_optimisation():
    rng, at = np.random.default_rng(1), np.arange(80)
    proxy = series(at / 40 + 0.02 * rng.normal(size=80))
    plateau = series(np.minimum(at, 30) / 40 + 0.02 * rng.normal(size=80))
    assert symptoms.over_optimisation({"reward": proxy, "gold_reward": plateau}) is None
    falling = series(np.minimum(at, 60 - at) / 40 + 0.02 * rng.normal(size=80))
    found = symptoms.over_optimisation({"reward": proxy, "gold_reward": falling})
    assert 27 <= found.span.first <= 35
    both = series(np.minimum(at, 60 - at) / 40 + 0.02 * rng.normal(size=80))
    assert symptoms.over_optimisation({"reward": both, "gold_reward": falling}) is None, "the reward fell too"


def test_a_loss_that_falls_from_the_start_is_no_forgetting():
    """As when pre-training data improve a model that has seen few of them; the values come from such a run of PPO."""
    losses = [5.96, 5.83, 5.68, 5.57, 5.44, 5.39, 5.25, 5.2, 5.22, 5.1, 5.2, 5.1, 5.05, 5.07, 5.06]
    assert symptoms.forgetting({"ptx_loss": series(losses)}) is None
    found = symptoms.forgetting({"ptx_loss": series([*losses, *[5.8] * 6])})
    assert found.span == Span(16, 21, lasting=True)

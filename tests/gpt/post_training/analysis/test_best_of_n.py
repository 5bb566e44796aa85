"""The estimate equals the mean over all subsets, also with ties and missing rewards."""

from itertools import combinations

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.post_training.analysis.best_of_n import best_of_n_curve, curve_record, draw_samples


def by_subsets(proxy, gold, n):
    """Mean over all subsets of n samples, ties broken evenly."""
    found = []
    for chosen in combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in chosen)
        found.append(np.mean([gold[i] for i in chosen if proxy[i] == top]))
    return np.mean(found)


def test_it_equals_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(3, 9)), rng.normal(size=(3, 9))
    points = best_of_n_curve(proxy, gold, ns=range(1, 10))
    for point in points:
        expected = [
            np.mean([by_subsets(p, r, point.n) for p, r in zip(proxy, rewards, strict=True)])
            for rewards in (proxy, gold)
        ]
        assert (point.proxy.estimate, point.gold.estimate) == pytest.approx(expected, abs=1e-12)
    assert points[0].proxy.estimate == pytest.approx(proxy.mean())
    assert points[-1].proxy.estimate == pytest.approx(proxy.max(axis=1).mean())


def test_ties_share_their_gold_rewards():
    """Which of the tied samples is drawn is chance, so each counts with their mean."""
    proxy, gold = np.array([[1.0, 1.0, 0.0]]), np.array([[4.0, 2.0, 9.0]])
    (point,) = best_of_n_curve(proxy, gold, ns=[2])
    assert point.gold.estimate == pytest.approx(by_subsets(proxy[0], gold[0], 2))
    assert point.gold.estimate == pytest.approx(3.0)


def test_many_samples_do_not_overflow_and_agree_with_draws():
    rng = np.random.default_rng(1)
    proxy = rng.normal(size=(1, 2000))
    gold = 0.5 * proxy + rng.normal(size=(1, 2000))
    (point,) = best_of_n_curve(proxy, gold, ns=[64])
    draws = [rng.choice(2000, size=64, replace=False) for _ in range(4000)]
    drawn = np.mean([gold[0, chosen[proxy[0, chosen].argmax()]] for chosen in draws])
    assert point.gold.estimate == pytest.approx(drawn, abs=0.08)
    assert point.proxy.estimate == pytest.approx(2.35, abs=0.15), "the mean maximum of 64 normal values"


def test_samples_without_a_reward_do_not_count():
    proxy = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, 5.0]])
    first, second = best_of_n_curve(proxy, ns=[1, 2])
    assert first.proxy.estimate == pytest.approx((2 + 5) / 2)
    assert second.proxy.estimate == 3.0, "the second prompt has one sample only"
    assert first.gold is None
    assert [point.n for point in best_of_n_curve(np.zeros((1, 12)))] == [1, 2, 4, 8]


def test_samples_are_drawn_with_seeds_of_their_own_and_the_best_is_chosen():
    seeds = []

    def generate(prompts, seed):
        seeds.append(seed)
        return [f"{prompt}{seed}" for prompt in prompts]

    def score(prompts, texts):
        return [float("nan") if text.endswith("4") else float(int(text[1:]) % 5) for text in texts]

    samples = draw_samples(["a", "b"], generate, score, n=4, gold=lambda prompts, texts: [1.0] * len(texts), seed=2)
    assert seeds == [2, 4, 6, 8]
    assert samples.completions == [["a2", "a4", "a6", "a8"], ["b2", "b4", "b6", "b8"]]
    np.testing.assert_array_equal(samples.proxy[0], [2, np.nan, 1, 3])
    assert samples.best(3) == ["a2", "b2"]
    assert samples.best(4) == ["a8", "b8"]
    record = curve_record(best_of_n_curve(samples.proxy, samples.gold))
    assert (record[1]["n"], record[1]["gold"]) == (2, 1.0)


@pytest.mark.parametrize("returned", [[1.0], 3.0, [[1.0], [2.0]]])
def test_a_scorer_that_returns_the_wrong_count_is_one_line(returned):
    with pytest.raises(ConfigError, match=r"score returned rewards of shape .* for 2 completions"):
        draw_samples(["a", "b"], lambda prompts, seed: ["x"] * len(prompts), lambda prompts, texts: returned, n=1)


def test_impossible_numbers_are_one_line():
    with pytest.raises(ConfigError, match="both must be at least 1"):
        draw_samples([], lambda prompts, seed: [], lambda prompts, texts: [], n=1)
    with pytest.raises(ConfigError, match="n = 5 is invalid"):
        best_of_n_curve(np.zeros((1, 3)), ns=[5])

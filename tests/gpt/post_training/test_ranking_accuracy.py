"""Accuracy, intervals, agreement and calibration of rewards against loops over pairs."""

import itertools
import math

import numpy as np
import pytest

from gpt.post_training.ranking_accuracy import RankedPrompt, accuracy, calibration, pairs_of, ranking_report


def prompt(levels, *, prompt_id="p", labeller="", lengths=None, scores=None, texts=None):
    texts = texts or list(range(len(levels)))
    lengths = lengths or [3] * len(levels)
    completions = tuple(np.full(length, text, dtype=np.int64) for length, text in zip(lengths, texts, strict=True))
    known = np.array(scores, dtype=float) if scores else np.full(len(levels), np.nan)
    return RankedPrompt(prompt_id, labeller, completions, np.array(levels), known)


def random_prompts(seed, n=40):
    draw = np.random.default_rng(seed)
    prompts, rewards = [], []
    for i in range(n):
        k = int(draw.integers(1, 8))
        scores = draw.normal(size=k).round(1)
        prompts.append(
            prompt(
                np.unique(scores, return_inverse=True)[1],
                prompt_id=f"p{i}",
                labeller=f"l{i % 3}",
                lengths=draw.integers(1, 9, size=k).tolist(),
                scores=scores.tolist(),
            )
        )
        rewards.append((scores + draw.normal(size=k)).round(1))
    return prompts, rewards


def test_the_report_equals_a_loop_over_pairs():
    prompts, rewards = random_prompts(1)
    report = ranking_report(prompts, rewards)
    shares, losses, every, by_labeller, longer = [], [], [], {}, [[], []]
    for one, own in zip(prompts, rewards, strict=True):
        differences = []
        for i, j in itertools.permutations(range(len(own)), 2):
            if one.levels[i] > one.levels[j]:
                difference = own[i] - own[j]
                differences.append(difference)
                more = len(one.completions[i]) - len(one.completions[j])
                if more:
                    longer[0].append(more > 0)
                    longer[1].append((more > 0) == (difference > 0))
        right = [1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences]
        every += right
        by_labeller.setdefault(one.labeller, []).extend(right)
        if right:
            shares.append(np.mean(right))
            losses.append(np.mean([math.log1p(math.exp(-d)) for d in differences]))
    assert report.overall.share == pytest.approx(np.mean(every))
    assert (report.overall.pairs, report.overall.prompts) == (len(every), len(shares))
    assert report.by_prompt == pytest.approx(np.mean(shares))
    assert report.loss == pytest.approx(np.mean(losses))
    assert {name: each.share for name, each in report.by_labeller.items()} == pytest.approx(
        {name: np.mean(right) for name, right in by_labeller.items()}
    )
    assert report.longer_is_better["rankings"].share == pytest.approx(np.mean(longer[0]))
    assert report.longer_is_better["rewards"].share == pytest.approx(np.mean(longer[1]))
    assert report.reward_mean == pytest.approx(np.concatenate(rewards).mean())
    assert sum(each.pairs for each in report.by_margin.values()) == len(every)
    assert [each.share for each in report.by_margin.values()][-1] > report.overall.share, "clear pairs are easier"


def test_intervals_are_by_prompt():
    """Pairs of one prompt are not independent: 100 copies of a pair do not narrow the interval."""
    draw = np.random.default_rng(5)
    right = (draw.random(60) < 0.7).astype(float)
    alone = accuracy(right, np.arange(60), seed=0)
    copies = accuracy(np.repeat(right, 100), np.repeat(np.arange(60), 100), seed=0)
    assert (alone.low, alone.high, alone.share) == (copies.low, copies.high, copies.share)
    deviation = math.sqrt(alone.share * (1 - alone.share) / 60)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert math.isnan(accuracy(np.zeros(0), np.zeros(0, dtype=np.int64), seed=0).share)


def test_rewards_that_are_log_odds_are_calibrated():
    """Draw each order with the probability that the rewards predict: the bins then agree with it."""
    draw = np.random.default_rng(2)
    prompts, rewards = [], []
    for _ in range(4000):
        own = draw.normal(size=2) * 2
        first = draw.random() < 1 / (1 + math.exp(own[1] - own[0]))
        prompts.append(prompt([1, 0] if first else [0, 1]))
        rewards.append(own)
    bins = calibration(pairs_of(prompts, rewards))
    assert len(bins) == 10
    for each in bins:
        assert each.observed == pytest.approx(each.predicted, abs=0.06)
    assert ranking_report(prompts, rewards).calibration_error < 0.03
    wrong = ranking_report(prompts, [own * 3 for own in rewards])
    assert wrong.calibration_error > 0.05, "too sure of itself"


def test_labellers_are_compared_on_the_pairs_that_both_have_ranked():
    texts = [7, 8, 9]
    prompts = [
        prompt([2, 1, 0], labeller="a", texts=texts),
        prompt([0, 2, 1], labeller="b", texts=[9, 7, 8]),  # the same order, the completions in another
        prompt([0, 1], labeller="c", texts=[7, 8]),  # the opposite of one pair
        prompt([1, 0], labeller="a", texts=[7, 8], prompt_id="another"),  # ranked by one only
        prompt([1, 1], labeller="d", texts=[7, 8]),  # a tie is no opinion
    ]
    rewards = [np.array(r, dtype=float) for r in ([3, 2, 1], [1, 3, 2], [3, 2], [0, 1], [3, 2])]
    report = ranking_report(prompts, rewards)
    # pairs by (a, b): 3 of 3 agree; (a, c) and (b, c): 0 of 1 each
    assert (report.between_labellers.share, report.between_labellers.pairs) == (3 / 5, 5)
    assert (report.model_on_these.share, report.model_on_these.pairs) == (6 / 7, 7)
    assert report.by_labeller["c"].share == 0.0


def test_rewards_that_are_not_finite_are_counted_and_left_out():
    report = ranking_report([prompt([0, 1, 2])], [np.array([1.0, np.nan, 2.0])])
    assert (report.nan, report.completions) == (1, 3)
    assert (report.overall.pairs, report.overall.share) == (1, 1.0)
    nothing = ranking_report([prompt([0, 1])], [np.array([np.nan, np.inf])])
    assert nothing.overall.pairs == 0
    assert math.isnan(nothing.reward_mean)

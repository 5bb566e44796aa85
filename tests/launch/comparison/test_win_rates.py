"""Win rates, agreement and biases of votes that are counted by hand."""

import math

import pytest

from gpt.evaluation.intervals import wilson_interval
from launch.comparison.votes import Vote
from launch.comparison.win_rates import summarise


def vote(labeller, prompt, outcome, *, pair=("ppo", "sft"), left=True, more="first"):
    return Vote(labeller, prompt, *pair, outcome, left, more)


def test_wins_ties_and_losses_are_counted():
    votes = [vote("a", "1", "first"), vote("a", "2", "first"), vote("a", "3", "tie"), vote("a", "4", "second")]
    (found,) = summarise(votes).win_rates
    assert (found.first, found.second, found.wins, found.ties, found.losses, found.n_prompts) == (
        "ppo",
        "sft",
        2,
        1,
        1,
        4,
    )
    assert found.rate.estimate == 2.5 / 4
    assert found.rate.low < found.rate.estimate < found.rate.high
    assert found.decided == wilson_interval(2, 3)


def test_each_pair_of_models_has_its_own_rate():
    votes = [vote("a", "1", "first", pair=("a", "b")), vote("a", "1", "second", pair=("b", "c"))]
    assert [(one.first, one.second, one.rate.estimate) for one in summarise(votes).win_rates] == [
        ("a", "b", 1),
        ("b", "c", 0),
    ]


def test_the_interval_is_by_prompt():
    """Five labellers who agree on four prompts give four observations, not twenty."""
    few = [vote("a", str(i), "first" if i else "second") for i in range(4)]
    many = [vote(name, str(i), "first" if i else "second") for i in range(4) for name in "abcde"]
    one, five = summarise(few).win_rates[0], summarise(many).win_rates[0]
    assert one.rate == five.rate
    assert five.decided.high - five.decided.low < one.decided.high - one.decided.low


def test_agreement_is_over_pairs_of_votes_on_one_question():
    votes = [
        vote("a", "1", "first"),
        vote("b", "1", "first"),
        vote("c", "1", "second"),
        vote("a", "2", "tie"),
        vote("b", "2", "tie"),
    ]
    found = summarise(votes)
    assert found.agreement.estimate == pytest.approx(1 / 3)
    assert found.agreement_with_ties.estimate == 0.5
    assert math.isnan(summarise(votes[3:4]).agreement.estimate)


def test_biases_of_position_and_length():
    votes = [
        vote("a", "1", "first", left=True, more="first"),
        vote("a", "2", "second", left=False, more="second"),
        vote("a", "3", "second", left=True, more="tie"),
        vote("a", "4", "tie", left=True, more="first"),
    ]
    found = summarise(votes)
    assert found.left_chosen.estimate == pytest.approx(2 / 3)
    assert found.longer_chosen.estimate == 1.0
    assert found.labellers == {"a": 4}

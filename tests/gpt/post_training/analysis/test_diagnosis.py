"""The doctor finds the fault of each training run that has one, and nothing in a healthy one.

The runs are real, on a table of logits (tabular_policy.py). No rule sees the knobs of the run.
"""

import numpy as np
import pytest

from gpt.post_training.analysis.diagnosis import SYMPTOMS, diagnose
from gpt.post_training.analysis.series import IterationSeries

# Fault: (knobs of a run that has it, first iterations at which it may begin, knobs of a run that comes near it)
FAULTS = {
    "negative KL": ({"temperature": 2.5, "beta": 0.3}, (2, 20), {"beta": 3.0}),
    "exploding KL": ({"beta": 0.0, "lr": 3.0, "words": 8}, (2, 15), {"beta": 0.3}),
    "dead critic": ({"critic_lr": 0.0}, (11, 11), {"critic_lr": 0.01}),
    "length gaming": ({"length_pay": 0.15, "lr": 0.5}, (10, 40), {"length_pay": 0.03}),
    "missing end tokens": ({"unended_pay": 4.0}, (3, 20), {"unended_pay": 1.0}),
    "saturated reward": ({"binary": True, "beta": 0.0, "lr": 3.0}, (10, 45), {"binary": True, "beta": 0.3}),
    "collapsed entropy": ({"beta": 0.0, "lr": 2.0}, (5, 30), {"beta": 0.3}),
    "clip fraction too high": ({"lr": 6.0, "updates": 8}, (1, 3), {"lr": 2.0}),
    "sampler gap": ({"stale": 3, "lr": 6.0}, (2, 59), {"stale": 1, "lr": 0.5}),
    "ratio of the first minibatch is not 1": ({"stale": 1}, (2, 2), {"stale": 0, "lr": 3.0}),
    "over-optimisation": (
        {"hack": True, "beta": 0.3, "lr": 0.5, "iterations": 100},
        (1, 20),
        {"hack": True, "beta": 4.0, "lr": 0.5, "iterations": 100},
    ),
    "forgetting": ({"beta": 0.0, "lr": 2.0}, (3, 30), {"beta": 1.0}),
}


def names(findings):
    return [finding.symptom.name for finding in findings]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_with_its_first_iteration_and_only_where_it_is(tabular, fault):
    knobs, (earliest, latest), near = FAULTS[fault]
    found = {one.symptom.name: one for one in diagnose(tabular.as_metrics(tabular.train(tabular.World(**knobs))))}
    assert fault in found
    assert earliest <= found[fault].evidence.span.first <= latest
    assert found[fault].text.startswith(f"{fault}, ")
    assert fault not in names(diagnose(tabular.as_metrics(tabular.train(tabular.World(**near)))))


@pytest.mark.parametrize("seed", range(6))
def test_a_healthy_run_has_no_fault(tabular, seed):
    assert names(diagnose(tabular.as_metrics(tabular.train(tabular.World(seed=seed))))) == []


def test_rewards_that_are_not_numbers_are_found_where_they_are_counted_and_where_the_mean_is_missing(tabular):
    log = tabular.train(tabular.World(iterations=20))
    counts = [0.0] * 20
    assert diagnose(tabular.as_metrics({**log, "nan_rewards": counts})) == []
    counts[6], counts[8] = 2.0, 1.0
    (found,) = diagnose(tabular.as_metrics({**log, "nan_rewards": counts}))
    assert found.when == "iterations 7 to 9"
    assert found.evidence.numbers == "3 rewards in 2 of 20 iterations"
    log["reward"][19] = float("nan")
    (found,) = diagnose(tabular.as_metrics(log))
    assert (found.symptom.name, found.when) == ("NaN rewards", "since iteration 20")


def test_length_gaming_is_not_confused_with_two_trends(tabular):
    """Reward and length both rise with sqrt(KL), but not with each other."""
    rng, n = np.random.default_rng(0), 60
    d = np.sqrt(np.linspace(0, 9, n))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        log = {
            "kl": d**2,
            "reward": d - 0.1 * d**2 + 0.05 * rng.normal(size=n),
            "length": 40 + 5 * d + rng.normal(size=n),
        }
        assert diagnose(tabular.as_metrics(log)) == []
    log["reward"] = log["reward"] + 0.2 * (log["length"] - 40 - 5 * d)
    assert names(diagnose(tabular.as_metrics(log))) == ["length gaming"]
    log["reward_length_correlation"] = np.full(n, 0.1)  # the batches themselves say otherwise
    assert diagnose(tabular.as_metrics(log)) == []


def test_a_fault_that_has_ended_comes_after_those_that_last(tabular):
    log = tabular.train(tabular.World(critic_lr=0.0))
    log["clip_fraction"] = [0.5] * 10 + [0.1] * 50
    last, ended = diagnose(tabular.as_metrics(log))
    assert (last.symptom.name, last.when) == ("dead critic", "since iteration 11")
    assert (ended.symptom.name, ended.when) == ("clip fraction too high", "iterations 1 to 12")
    assert "clip fraction 0.50, highest 0.50" in ended.text


def test_few_iterations_give_only_exact_findings(tabular):
    log = tabular.train(tabular.World(iterations=2, stale=1, lr=30.0))
    assert names(diagnose(tabular.as_metrics(log))) == ["ratio of the first minibatch is not 1"]
    assert diagnose({}) == []
    assert diagnose({"kl": IterationSeries(np.zeros(0, dtype=np.int64), np.zeros(0))}) == []


def test_every_symptom_states_its_rule_source_and_remedy_and_has_a_test():
    assert {symptom.name for symptom in SYMPTOMS} == {*FAULTS, "NaN rewards"}
    for symptom in SYMPTOMS:
        assert symptom.rule
        assert symptom.source
        assert symptom.advice.endswith(".")


def test_rounding_in_bf16_is_no_sampler_gap(tabular):
    """SmolLM2-135M in bf16 has 0.043 with equal weights in sampler and training forward."""
    assert diagnose(tabular.as_metrics({"sampler_gap": [0.0433] * 10})) == []
    for gaps in ([0.15] * 10, [0.0433] * 3 + [0.095] * 7, [1e-6] * 3 + [0.03] * 7):
        assert names(diagnose(tabular.as_metrics({"sampler_gap": gaps}))) == ["sampler gap"]

"""Rewards against sqrt(KL), with the laws of over-optimisation."""

import json
import re

import numpy as np
import pytest

from gpt.post_training.analysis.best_of_n import best_of_n_curve, curve_record
from gpt.post_training.analysis.over_optimisation import RewardLaw
from launch.reports.over_optimisation_plot import BEST_OF_N, best_of_n_curves, over_optimisation_part, policy_curves


def metrics_of(tabular, **law):
    """KL that grows to 64 nats, a trained reward that rises, and a gold reward by this law."""
    d = np.linspace(0.4, 8, 120)
    gold = RewardLaw("RL", r_squared=1.0, **law).reward(d)
    noise = 0.01 * np.random.default_rng(0).normal(size=(2, 120))
    return tabular.as_metrics({"kl": d**2, "reward": 0.8 * d + noise[0], "gold_reward": gold + noise[1]})


def test_the_laws_are_fitted_and_the_peak_is_marked(tabular, tmp_path, written_runs):
    metrics = metrics_of(tabular, start=0.1, alpha=1.0, beta=0.5)
    gold = policy_curves(metrics)[1]
    assert gold.law.peak == pytest.approx(np.exp(1.0), rel=0.02)
    assert (gold.law.alpha, gold.law.beta) == pytest.approx((1.0, 0.5), abs=0.02)
    part = over_optimisation_part(metrics, tmp_path)
    assert written_runs.Tags(part).open == []
    assert part.count('class="peak ') == 1, "the trained reward has none"
    assert "gold reward, RL: highest at d = 2.7" in part
    assert part.count('class="point ') == 240
    assert "nan" not in part


def test_best_of_n_is_drawn_beside_the_policy(tabular, tmp_path):
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(30, 32))
    points = best_of_n_curve(proxy, 0.5 * proxy + rng.normal(size=(30, 32)))
    (tmp_path / BEST_OF_N).write_text(json.dumps(curve_record(points)))
    curves = best_of_n_curves(tmp_path)
    assert [curve.name for curve in curves] == ["trained reward, best-of-n", "gold reward, best-of-n"]
    assert curves[0].law.form == "best of n"
    assert curves[0].d[-1] == pytest.approx(np.sqrt(np.log(32) - 31 / 32))
    part = over_optimisation_part(metrics_of(tabular, start=0.0, alpha=1.0, beta=0.5), tmp_path)
    assert part.count('class="hollow ') == 12
    assert part.count('class="fit ') == 4
    assert over_optimisation_part({}, tmp_path), "also alone"


def test_damaged_files_and_missing_metrics_give_nothing(tabular, tmp_path):
    assert over_optimisation_part({}, tmp_path) == ""
    assert over_optimisation_part(tabular.as_metrics({"reward": [1.0, 2.0]}), tmp_path) == ""
    for text in ("{", "3", '[3, {"kl": "x", "proxy": 1}, {"kl": 1e99, "proxy": 1}]'):
        (tmp_path / BEST_OF_N).write_text(text)
        assert best_of_n_curves(tmp_path) == []


def test_few_iterations_are_drawn_without_a_law(tabular, tmp_path):
    part = over_optimisation_part(tabular.as_metrics({"kl": [0.0, 0.1], "reward": [0.0, 0.2]}), tmp_path)
    assert part.count('class="point ') == 2
    assert "<table>" not in part
    assert not re.search("nan|inf", part)


def test_a_law_is_not_drawn_where_it_leaves_the_plot(tabular, tmp_path):
    """Its value at small distances may lie far below all rewards; the axis is no part of the curve."""
    d = np.linspace(0.4, 3, 12)
    rewards = np.where(d < 1, 0.0, RewardLaw("RL", start=-2.0, alpha=3.0, beta=0.5, r_squared=1.0).reward(d))
    part = over_optimisation_part(tabular.as_metrics({"kl": d**2, "reward": rewards}), tmp_path)
    (drawn,) = re.findall(r'class="fit s0" d="M([^"]*)"', part)
    heights = [float(point.split()[1]) for point in drawn.split("L")]
    assert len(set(heights)) == len(heights), "no flat part"
    assert len(heights) < 120

"""Training compute equals the GPT-3 paper's table; the fit finds the power law of families with a known law."""

import math

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.evaluation.scaling_law import (
    GPT3_LAW,
    PF_DAY_FLOPS,
    Curve,
    Point,
    fit_power_law,
    fitted_points,
    frontier,
    t_quantile_975,
    training_flops,
)
from gpt.model.config import ModelConfig

# Table D.1 of arXiv 2005.14165: parameters (millions), tokens (billions), training FLOPs, PF-days.
TABLE_D1 = {
    "GPT-3 Small": (125, 300, 2.25e20, 2.60),
    "GPT-3 XL": (1320, 300, 2.38e21, 2.75e1),
    "GPT-3 13B": (12850, 300, 2.31e22, 2.68e2),
    "GPT-3 175B": (174600, 300, 3.14e23, 3.64e3),
}


@pytest.mark.parametrize("name", TABLE_D1)
def test_training_compute_equals_the_papers_table(name: str) -> None:
    millions, billions, flops, pf_days = TABLE_D1[name]
    ours = training_flops(millions * 1e6, billions * 1e9)
    assert ours == pytest.approx(flops, rel=0.02)
    assert ours / PF_DAY_FLOPS == pytest.approx(pf_days, rel=0.02)


def test_the_papers_law_at_its_largest_model() -> None:
    """Figure 3.1 ends near 1.73 nats. Its law gives that for 3,640 PF-days."""
    assert GPT3_LAW.loss(3640) == pytest.approx(1.734, abs=0.002)


def test_non_embedding_parameters_of_gpt3_small() -> None:
    """85 of its 125 million: 12 blocks of 12 d^2 weights, with biases and norms."""
    config = ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=12, d_model=768, n_heads=12)
    assert config.non_embedding_parameters == config.parameters - (50257 + 2048) * 768
    assert config.non_embedding_parameters == 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    untied = ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=12, d_model=768, n_heads=12, tied=False)
    assert untied.non_embedding_parameters == config.non_embedding_parameters


def family(factor: float, exponent: float) -> list[Curve]:
    """Return four runs. Each lies on the law over one decade of compute and above it elsewhere."""
    curves = []
    for i, size in enumerate([1e5, 1e6, 1e7, 1e8]):
        first = 1e-6 * 10.0**i  # start of its decade
        pf_days = np.geomspace(first / 10, first * 100, 31)
        over = np.maximum(0.0, np.log(first / pf_days)) + np.maximum(0.0, np.log(pf_days / (10 * first)))
        losses = factor * pf_days**exponent * np.exp(0.2 * over)
        curves.append(Curve(f"run {i}", int(size), pf_days * PF_DAY_FLOPS / (6 * size), losses))
    return curves


@pytest.mark.parametrize(("factor", "exponent"), [(2.57, -0.048), (0.9, -0.12)])
def test_the_fit_finds_a_known_law(factor: float, exponent: float) -> None:
    points = frontier(family(factor, exponent))
    used = fitted_points(points)
    assert {point.curve for point in points} == {0, 1, 2, 3}
    assert {point.curve for point in used} == {1, 2, 3}
    law = fit_power_law(used)
    assert law.factor == pytest.approx(factor, rel=1e-9)
    assert law.exponent == pytest.approx(exponent, rel=1e-9)
    assert law.exponent_95 is not None
    assert law.exponent_95[0] == pytest.approx(law.exponent_95[1], abs=1e-9)


def test_the_fit_equals_numpys_and_its_interval_has_the_nominal_coverage() -> None:
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        pf_days = np.geomspace(1e-7, 1e-4, 9)
        losses = 2.0 * pf_days**-0.1 * np.exp(0.05 * rng.standard_normal(9))
        law = fit_power_law([Point(0, 1, c, loss) for c, loss in zip(pf_days, losses, strict=True)])
        (slope, intercept), covariance = np.polyfit(np.log(pf_days), np.log(losses), 1, cov=True)
        assert law.exponent == pytest.approx(slope)
        assert law.factor == pytest.approx(math.exp(intercept))
        assert law.exponent_95 is not None
        low, high = law.exponent_95
        assert (high - low) / 2 == pytest.approx(2.365 * math.sqrt(covariance[0, 0]), rel=1e-3)
        inside += low < -0.1 < high
    assert 180 <= inside <= 199, "95 % of 200 intervals"


def test_quantiles_of_students_t() -> None:
    for degrees, value in {3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 1000: 1.962}.items():
        assert t_quantile_975(degrees) == pytest.approx(value, rel=1.5e-3)


def curve(size: int, *losses: float, tokens: tuple[float, ...] = (1e6, 2e6, 4e6)) -> Curve:
    return Curve(f"{size}", size, np.array(tokens), np.array(losses))


def test_the_frontier_holds_the_best_loss_at_each_compute() -> None:
    small, large = curve(100, 5.0, 4.0, 3.9), curve(200, 5.5, 3.5, 3.6)
    points = frontier([small, large])
    # The small run's last evaluation costs as much as the large run's second, which is lower. The large run's first
    # costs as much as the small run's second.
    assert [(point.curve, point.tokens) for point in points] == [(0, 1_000_000), (0, 2_000_000), (1, 2_000_000)]
    assert [(point.curve, point.loss) for point in fitted_points(points)] == [(1, 3.5)]
    # Between its first two evaluations, this run passes below the small run's second.
    between = curve(150, 5.2, 2.5, 2.4)
    assert [(point.curve, point.tokens) for point in frontier([small, between])] == [
        (0, 1_000_000),
        (1, 2_000_000),
        (1, 4_000_000),
    ]
    assert frontier([curve(1, 4.0, 3.0, 2.0), curve(10, 9.0, 8.0, 7.0)])[-1].curve == 0


def test_too_few_points_for_a_law_are_refused() -> None:
    points = frontier([curve(1, 4.0, 3.0, 2.0), curve(10, 9.0, 8.0, 7.0)])
    assert fitted_points(points) == []
    with pytest.raises(ConfigError, match="0 evaluations lie on the frontier after a second run takes the lead"):
        fit_power_law(fitted_points(points))
    assert fit_power_law([Point(0, 1, c, c**-0.5) for c in (1.0, 2.0, 3.0)]).exponent_95 is None

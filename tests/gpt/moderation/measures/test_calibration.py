"""Calibrators equal scikit-learn's; the calibration error equals a formula; damaged files are refused."""

import math

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.moderation.measures.calibration import (
    Isotonic,
    Temperature,
    calibrated,
    calibration_bins,
    calibrator_json,
    expected_calibration_error,
    fit,
    fit_isotonic,
    fit_temperature,
    read_calibrator,
)


def random_case(seed):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.02, 0.98, size=300)
    p = np.round(p, 2) if seed % 2 else p
    labels = (rng.random(300) < p**2).astype(float)
    labels[rng.random(300) < 0.1] = np.nan
    return labels, p


@pytest.mark.parametrize("seed", range(6))
def test_isotonic_equals_scikit_learn(seed):
    isotonic = pytest.importorskip("sklearn.isotonic", reason="scikit-learn is not installed")
    labels, p = random_case(seed)
    kept = ~np.isnan(labels)
    peer = isotonic.IsotonicRegression(out_of_bounds="clip").fit(p[kept], labels[kept])
    probe = np.linspace(0, 1, 1_001)
    np.testing.assert_allclose(calibrated(probe, fit_isotonic(labels, p)), peer.predict(probe), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_is_where_the_derivative_of_the_log_loss_is_zero(seed):
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    labels, p = random_case(seed)
    kept = ~np.isnan(labels)
    logit = np.log(p / (1 - p))[kept]
    found = fit_temperature(labels, p).temperature
    residual = 1 / (1 + np.exp(-logit / found)) - labels[kept]
    assert residual @ logit == pytest.approx(0, abs=1e-9)
    peer = linear.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1_000)
    peer.fit(logit[:, None], labels[kept])
    assert 1 / found == pytest.approx(peer.coef_.item(), abs=1e-5)  # the peer stops by its own tolerance


def test_a_temperature_stays_in_its_range_when_the_classes_are_separable():
    assert fit_temperature([0, 1], [0.4, 0.6]).temperature == pytest.approx(1e-3)
    assert fit_temperature([1, 0], [0.4, 0.6]).temperature == pytest.approx(1e3)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_calibration_keeps_the_order_and_survives_json(kind):
    labels, p = random_case(1)
    found = fit(kind, labels, p)
    assert read_calibrator(calibrator_json(found), where="here") == found
    mapped = calibrated(np.sort(p), found)
    assert (np.diff(mapped) >= 0).all()
    assert expected_calibration_error(labels, calibrated(p, found)) < expected_calibration_error(labels, p)
    assert np.isfinite(calibrated([0.0, 1.0], found)).all()


@pytest.mark.parametrize(("labels", "rule"), [([0, 0], "all known labels are 0"), ([np.nan, np.nan], "no label")])
def test_refuses_one_class(labels, rule):
    with pytest.raises(ValueError, match=rule):
        fit_isotonic(labels, [0.2, 0.7])


def test_the_calibration_error_equals_the_sum_over_bins_and_scikit_learns_curve():
    calibration = pytest.importorskip("sklearn.calibration", reason="scikit-learn is not installed")
    labels, p = random_case(0)
    kept = ~np.isnan(labels)
    y, score = labels[kept], p[kept]
    shares, means = calibration.calibration_curve(y, score, n_bins=10)
    bins = calibration_bins(labels, p, bins=10)
    np.testing.assert_allclose([one["positive_share"] for one in bins], shares, atol=1e-12)
    np.testing.assert_allclose([one["mean_score"] for one in bins], means, atol=1e-12)
    inside = [(score > i / 10) & (score <= (i + 1) / 10) for i in range(10)]
    expected = sum(abs(score[b].mean() - y[b].mean()) * b.sum() for b in inside if b.any()) / len(y)
    assert expected_calibration_error(labels, p, bins=10) == pytest.approx(expected, abs=1e-12)


def test_the_calibration_error_without_labels_is_nan_and_of_no_probability_refused():
    assert math.isnan(expected_calibration_error([np.nan], [0.5]))
    with pytest.raises(ValueError, match="not a probability"):
        expected_calibration_error([1.0], [1.5])


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"kind": "spline"},
        {"kind": "temperature", "temperature": 0},
        {"kind": "temperature", "temperature": math.nan},
        {"kind": "temperature", "temperature": True},
        {"kind": "isotonic", "x": [0.1, 0.1], "y": [0, 1]},
        {"kind": "isotonic", "x": [0.1, 0.2], "y": [1, 0]},
        {"kind": "isotonic", "x": [0.1, 0.2], "y": [0, 2]},
        {"kind": "isotonic", "x": [], "y": []},
        {"kind": "isotonic", "x": [0.1], "y": ["a"]},
    ],
)
def test_refuses_a_damaged_calibrator(value):
    with pytest.raises(ConfigError, match=r"calibration\.json: .*Run `triaxial moderate calibrate` again"):
        read_calibrator(value, where="calibration.json")


def test_the_forms_in_json():
    assert calibrator_json(Temperature(2.0)) == {"kind": "temperature", "temperature": 2.0}
    assert calibrator_json(Isotonic((0.1, 0.9), (0.0, 1.0))) == {"kind": "isotonic", "x": [0.1, 0.9], "y": [0.0, 1.0]}

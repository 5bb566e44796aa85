"""Calibration and thresholds come from the run directory, and damaged files are refused."""

import json

import numpy as np
import pytest

from gpt.errors import ConfigError
from launch.moderation.decisions import n_fitted_on, read_decisions, write_fitted_on


def write(run, name, value):
    (run / "moderation").mkdir(exist_ok=True)
    (run / "moderation" / name).write_text(json.dumps(value))


def test_without_files_scores_are_probabilities(tmp_path):
    found = read_decisions(tmp_path, ("A", "B"))
    assert (found.digest, dict(found.thresholds)) == ("", {"A": 0.5, "B": 0.5})
    scores = np.array([[0.2, 0.7]])
    np.testing.assert_array_equal(found.applied(scores, ("A", "B")), scores)


def test_calibration_and_thresholds_are_applied(tmp_path):
    write(tmp_path, "calibration.json", {"B": {"kind": "temperature", "temperature": 2.0}})
    write(tmp_path, "thresholds.json", {"A": 0.75})
    found = read_decisions(tmp_path, ("A", "B"))
    assert dict(found.thresholds) == {"A": 0.75, "B": 0.5}
    wanted = 1 / (1 + np.exp(-np.log(0.9 / 0.1) / 2))
    np.testing.assert_allclose(found.applied(np.array([[0.2, 0.9]]), ("A", "B")), [[0.2, wanted]], rtol=1e-12)
    before = found.digest
    write(tmp_path, "thresholds.json", {"A": 0.7})
    assert read_decisions(tmp_path, ("A", "B")).digest not in ("", before)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        (
            "calibration.json",
            {"C": {"kind": "temperature", "temperature": 2}},
            "'C' is no category of the run's taxonomy",
        ),
        ("calibration.json", {"A": {"kind": "other"}}, "kind must be 'temperature' or 'isotonic'"),
        ("thresholds.json", {"A": 1.5}, "A is invalid: must be a number from 0 to 1"),
        ("thresholds.json", [1], "thresholds.json"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, value, error):
    write(tmp_path, name, value)
    with pytest.raises(ConfigError, match=error):
        read_decisions(tmp_path, ("A", "B"))


@pytest.mark.parametrize(
    "calibrator",
    [{"kind": "temperature", "temperature": 2.0}, {"kind": "isotonic", "x": [0.1, 0.3, 0.6], "y": [0.05, 0.4, 0.9]}],
)
def test_without_calibration_the_same_texts_are_flagged(tmp_path, calibrator):
    write(tmp_path, "calibration.json", {"A": calibrator})
    write(tmp_path, "thresholds.json", {"A": 0.4, "B": 0.7})
    found = read_decisions(tmp_path, ("A", "B"))
    raw = found.without_calibration()
    scores = np.linspace(0, 1, 1001)[:, None].repeat(2, axis=1)
    np.testing.assert_array_equal(raw.applied(scores, ("A", "B")), scores)
    for column, name in enumerate("AB"):
        flagged = found.applied(scores, ("A", "B"))[:, column] >= found.thresholds[name]
        np.testing.assert_array_equal(scores[:, column] >= raw.thresholds[name] - 1e-12, flagged)


def test_a_calibrated_parent_has_at_least_the_scores_of_its_children(tmp_path):
    names, parents = ("A", "B", "C", "D"), (-1, 0, 1, -1)
    write(tmp_path, "calibration.json", {"A": {"kind": "temperature", "temperature": 4.0}})
    apart, found = read_decisions(tmp_path, names), read_decisions(tmp_path, names, parents=parents)
    scores = np.array([[0.9, 0.9, 0.85, 0.1], [0.3, 0.2, 0.1, 0.95]])
    assert apart.applied(scores, names)[0, 0] < 0.7  # below its children
    np.testing.assert_array_equal(found.applied(scores, names)[0], [0.9, 0.9, 0.85, 0.1])
    np.testing.assert_array_equal(found.applied(scores, names)[1], apart.applied(scores, names)[1])
    assert found.digest != apart.digest  # another version of the scores


def test_a_run_knows_the_texts_that_chose_its_thresholds(tmp_path):
    (tmp_path / "moderation").mkdir()
    assert n_fitted_on(tmp_path, ["a", "b"]) == 0
    write_fitted_on(tmp_path, ["a", "b\ud800"])
    assert n_fitted_on(tmp_path, ["a", "c", "b\ud800"]) == 2
    assert "a" not in json.loads((tmp_path / "moderation" / "fitted_on.json").read_text())["ids"]


def test_a_threshold_that_nothing_reaches_stays_out_of_reach(tmp_path):
    write(tmp_path, "calibration.json", {"A": {"kind": "isotonic", "x": [0.1, 0.9], "y": [0.1, 0.6]}})
    write(tmp_path, "thresholds.json", {"A": 0.9})
    assert read_decisions(tmp_path, ("A",)).without_calibration().thresholds["A"] == 1.0

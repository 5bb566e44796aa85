"""Metrics may be looked at while they are read: the look changes nothing."""

import math

import numpy as np

from launch.runs.metrics_takes import STEP_TOKENS, MetricsTakes
from launch.runs.series import MAX_POINTS, thinned


def record(step):
    return {"step": step, "loss": math.sin(step), "tokens_per_s": 1000.0, "step_s": 0.5, "text": "x", "mfu": math.nan}


def test_a_look_in_between_changes_nothing():
    looked_at, quiet = MetricsTakes(), MetricsTakes()
    for step in range(5 * MAX_POINTS):
        looked_at.add(record(step))
        quiet.add(record(step))
        if step % 10_007 == 0:
            looked_at.takes()
    (ours,), (theirs,) = looked_at.takes(), quiet.takes()
    assert set(ours) == {"loss", "tokens_per_s", "step_s", STEP_TOKENS}
    for name, series in theirs.items():
        for field in ("steps", "values", "low", "high"):
            np.testing.assert_array_equal(getattr(ours[name], field), getattr(series, field))
    assert ours[STEP_TOKENS].values[0] == 500
    assert ours["loss"].recent[-1] == math.sin(5 * MAX_POINTS - 1)


def test_a_new_take_begins_where_steps_go_back():
    takes = MetricsTakes()
    for step in (1, 2, 3, 2, 3, "4", -1, None):
        takes.add({"step": step, "loss": 1.0})
    assert [take["loss"].steps.tolist() for take in takes.takes()] == [[1, 2, 3], [2, 3]]


def test_a_thinned_series_keeps_its_extremes():
    takes = MetricsTakes()
    for step in range(1000):
        takes.add({"step": step, "loss": 9.0 if step == 777 else 1.0})
    series = thinned(takes.takes()[0]["loss"], 30)
    assert len(series.steps) <= 30
    assert series.high.max() == 9.0
    assert series.low.max() == 1.0
    assert np.average(series.values[:-1]) < 1.1

"""A kept prediction beside what the run measured."""

import json

import pytest

from launch.runs.history import read_history
from launch.runs.prediction import KeptPrediction, compared_figures, measured_step_s, prediction_of

KEPT = KeptPrediction("H100", "400G", 8, "triaxial", 1000, 2.0, 1.8, 2.3, mfu=0.4, peak_bytes=10 << 30)


def run_of(folder, *, tokens_per_s, prediction=KEPT, step_s=2.2):
    rows = [
        {"step": i, "loss": 3.0, "step_s": step_s, "tokens_per_s": tokens_per_s, "mfu": 0.36, "peak_memory_bytes": 1e10}
        for i in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if prediction is not None:
        (folder / "prediction.json").write_text(json.dumps(prediction.as_json()))
    return read_history(folder)


def test_figures_with_their_ratio(tmp_path):
    step, mfu, memory = compared_figures(run_of(tmp_path, tokens_per_s=1000 / 2.2))
    assert (step.measured, step.ratio, step.inside) == (2.2, pytest.approx(1.1), True)
    assert mfu.ratio == pytest.approx(0.9)
    assert memory.ratio == pytest.approx(1e10 / (10 << 30))
    outside, *_ = compared_figures(run_of(tmp_path, tokens_per_s=1000 / 2.5, step_s=2.5))
    assert outside.inside is False


def test_steps_of_a_batch_that_still_grows_are_not_compared(tmp_path):
    history = run_of(tmp_path, tokens_per_s=500 / 2.2)
    assert measured_step_s(history, tokens=1000) is None
    assert measured_step_s(history, tokens=500) == 2.2
    assert [figure.name for figure in compared_figures(history)] == ["peak memory"]


def test_a_run_without_prediction_has_no_figures(tmp_path):
    assert compared_figures(run_of(tmp_path, tokens_per_s=1, prediction=None)) == []


@pytest.mark.parametrize(
    "damage", [{"step_s": 0}, {"tokens": "many"}, {"device": None}, {"low_s": float("nan")}, {"node": -1}]
)
def test_a_damaged_file_is_no_prediction(damage):
    assert prediction_of(KEPT.as_json()) == KEPT
    assert prediction_of({**KEPT.as_json(), **damage}) is None
    assert prediction_of({}) is None

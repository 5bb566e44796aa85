"""The prediction in the terminal's figures, on the page and in the JSON of a report."""

import json

from launch.reports.facts import as_json, headline
from launch.reports.page import report_page
from launch.reports.tables import prediction_part
from launch.runs.history import read_history
from launch.runs.prediction import KeptPrediction

KEPT = KeptPrediction("<CPU>", "none", 2, "triaxial", 1000, 2.0, 1.8, 2.3, 0.4, 10 << 30, base_bytes=500 << 20)


def write_run(folder, *, prediction):
    row = {"loss": 3.0, "step_s": 2.2, "tokens_per_s": 1000 / 2.2, "mfu": 0.36, "peak_memory_bytes": 11 << 30}
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i, **row}) + "\n" for i in range(1, 5)))
    if prediction is not None:
        (folder / "prediction.json").write_text(json.dumps(prediction.as_json()))
    return read_history(folder)


def test_every_output_shows_prediction_beside_reality(tmp_path):
    history = write_run(tmp_path, prediction=KEPT)
    figures = {name: (value, note) for name, value, note in headline(history)}
    assert figures["step time"] == ("2.2 s", "predicted 2 s, measured 1.10 times, inside the 90% interval")
    assert figures["MFU"] == ("36.0%", "predicted 40.0%, measured 0.90 times")
    assert figures["peak memory"][1].startswith("predicted 10.00 GiB, measured 1.10 times")
    page = report_page(history, now=0.0)
    for text in ("Prediction and reality", "1.8 s to 2.3 s", "11.00 GiB", "1.100", "500 MiB", "&lt;CPU&gt;"):
        assert text in page
    found = as_json(history, now=0.0)["prediction"]
    assert found["measured"]["step_time"]["ratio"] == 2.2 / 2.0


def test_before_the_first_step_the_page_has_the_prediction_alone(tmp_path):
    history = write_run(tmp_path, prediction=KEPT)
    (tmp_path / "metrics.jsonl").write_text("")
    assert "No step of the full batch" in prediction_part(read_history(tmp_path))
    assert history.prediction == KEPT


def test_without_a_prediction_nothing_appears(tmp_path):
    history = write_run(tmp_path, prediction=None)
    assert prediction_part(history) == ""
    assert "prediction" not in as_json(history, now=0.0)
    assert {name for name, _, _ in headline(history)} == {"step", "loss", "tokens/s", "MFU", "peak memory"}

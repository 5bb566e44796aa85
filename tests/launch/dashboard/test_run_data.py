"""The JSON of a run holds its facts as plain texts and finite numbers."""

import json

import numpy as np
import pytest

from launch.dashboard.feed import RunFeed
from launch.dashboard.run_data import run_data, series_data
from launch.runs.series import Series

NOW = 2e9
MODEL = {"vocab_size": 512, "n_ctx": 32, "n_layers": 2, "d_model": 16, "n_heads": 2, "d_ff": None}


def names_of(data):
    return {figure["title"]: figure["names"] for figure in data["figures"]}


@pytest.fixture
def data(written_runs, tmp_path):
    run = tmp_path / "run <i>"
    written_runs.write_run(run, steps=60, lost=(40, 50))
    config = {"model": MODEL, "data": {"seq_len": 32}, "parallel": {"tensor": 2, "pipeline": "x"}}
    (run / "config.json").write_text(json.dumps(config))
    texts = [{"step": 10, "prompt": "a", "text": "<script>"}, {"step": "x", "prompt": "", "text": ""}]
    (run / "samples.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    feed = RunFeed(run)
    feed.read_once()
    return run_data(feed, now=NOW)


def test_it_is_json_with_all_parts(data, written_runs):
    assert json.loads(json.dumps(data, allow_nan=False))["name"] == "run <i>"
    assert names_of(data)["Loss, nats a token"] == ["loss", "validation/web <b>/loss"]
    assert data["labels"]["loss"] == "training"
    assert data["labels"]["validation/web <b>/loss"] == "validation/web <b>"
    assert data["config"]["model.d_model"] == "16"
    assert data["config"]["model.d_ff"] == ""
    assert data["samples"] == [{"step": 10, "prompt": "a", "text": "<script>"}]
    assert data["layout"] == {"tensor": 2, "pipeline": 1, "data": 1, "ranks": 2}, "a damaged axis counts as 1"
    kinds = [event["meaning"] for event in data["events"]]
    assert kinds.count("fault") == 2
    assert any(event["text"] == written_runs.HOSTILE for event in data["events"]), "the page escapes it"


def test_flops_of_a_token_are_those_of_the_model(data):
    parameters = 2 * (12 * 16 * 16 + 13 * 16) + 512 * 16 + 2 * 16  # without positions, whose look-up is no product
    assert data["flops_per_token"] == 6 * parameters + 12 * 2 * 16 * 32


def test_series_have_few_digits_and_bounds_only_where_thinned():
    steps, values = np.arange(3), np.array([1 / 3, 2.0, 3e-9])
    assert series_data(Series(steps, values)) == {"step": [0, 1, 2], "value": [0.333333, 2.0, 3e-9]}
    assert series_data(None) == {"step": [], "value": []}
    assert series_data(Series(steps, values, values, values))["low"] == [0.333333, 2.0, 3e-9]


def test_the_memory_of_the_rank_and_of_its_machine_are_figures(written_runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    line = {"step": 1, "peak_memory_bytes": 3, "memory/resident_bytes": 2, "memory/machine_used_bytes": 9}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    feed = RunFeed(run)
    feed.read_once()
    figures = names_of(run_data(feed, now=0.0))
    assert figures["Memory of the main rank"] == ["peak_memory_bytes", "memory/resident_bytes"]
    assert figures["Memory in use on its machine"] == ["memory/machine_used_bytes"]


def test_a_policy_has_bands_faults_and_figures_of_its_own(tabular, tmp_path):
    feed = RunFeed(tabular.write_run(tmp_path / "ppo", tabular.World(beta=0.0, lr=2.0)))
    feed.read_once()
    data = run_data(feed, now=0.0)
    assert names_of(data)["KL, nats a response"] == ["ppo/kl"]
    assert data["bands"]["ppo/kl"] == (0.0, 10.0)
    low, high = data["bands"]["ppo/length"]
    assert low / high == pytest.approx(0.8 / 1.2)
    assert data["faults"][0]["fault"] == "collapsed entropy"
    assert data["faults"][0]["when"].startswith("since iteration")
    json.dumps(data, allow_nan=False)

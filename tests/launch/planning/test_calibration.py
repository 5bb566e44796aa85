"""Calibration on a run directory: what a real run writes, with its step times set by hand."""

import json
from dataclasses import replace

import pytest

from gpt.errors import ConfigError
from launch.config.run_config import as_dict, read_run_config
from launch.planning.calibration import calibrate
from parallel.planner.choice.candidates import PlanRequest, candidate
from parallel.planner.choice.ranking import rank_one
from parallel.planner.hardware.tables import Cluster, read_hardware
from parallel.planner.published.validate import CALIBRATED_SPREAD

HARDWARE = read_hardware()
CLUSTER = Cluster(HARDWARE.gpus["H100"], HARDWARE.networks["400G"], 8)


def request_of(config):
    return PlanRequest(
        config.model, config.batch, config.data.seq_len, config.parallel, CLUSTER, HARDWARE.stacks["triaxial"]
    )


@pytest.fixture
def run(tmp_path):
    """A run of gpt3_125m on one device, 20% slower than predicted: its directory, its request and the prediction."""
    overrides = ["--run.directory", str(tmp_path / "run"), "--parallel.data", "1"]
    config = read_run_config("gpt3_125m", overrides)
    request = request_of(config)
    predicted = rank_one(request, candidate(request, config.parallel, config.batch.micro_batch_size)).time
    job = candidate(request, config.parallel, config.batch.micro_batch_size).job
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(as_dict(config)))
    step = 1.2 * predicted.seconds
    mfu = job.flops / step / (CLUSTER.gpu.peak * 1e12)
    rows = [
        {"step": i, "loss": 3.0, "step_s": step, "mfu": mfu, "tokens_per_s": job.tokens / step} for i in range(1, 6)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, request, predicted.seconds


def test_a_run_scales_the_stack(run):
    folder, request, predicted = run
    scaled, found = calibrate(folder, request)
    assert found.predicted == pytest.approx(predicted)
    assert found.ratio == pytest.approx(1.2)
    each = candidate(scaled, request.parallel, request.batch.micro_batch_size)
    after = rank_one(scaled, each).time
    assert after.seconds == pytest.approx(1.2 * predicted)
    assert sum(after.parts.values()) == pytest.approx(after.seconds)
    assert scaled.stack.spread == CALIBRATED_SPREAD
    assert "ratio 1.200" in str(found)


def test_runs_that_say_nothing_about_the_plan(run, tmp_path):
    folder, request, _ = run
    other = replace(request, cluster=replace(CLUSTER, gpu=HARDWARE.gpus["A100-80G"]))
    with pytest.raises(ConfigError, match=r"peak of 989 TFLOP/s, but A100-80G has 312"):
        calibrate(folder, other)
    fp32 = replace(request, parallel=replace(request.parallel, precision="fp32"))
    with pytest.raises(ConfigError, match="it ran in bf16, and the plan is for fp32"):
        calibrate(folder, fp32)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "step_s": 1.0}\n')
    with pytest.raises(ConfigError, match="fewer than 3 steps"):
        calibrate(folder, request)
    with pytest.raises(ConfigError):
        calibrate(tmp_path / "none", request)

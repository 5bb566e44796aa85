"""The prediction that a run keeps: on a GPU of the tables, on hardware that the planner does not know, in the files."""

import json
from dataclasses import replace

import pytest
import torch

from launch.config.run_config import layout_of, read_run_config
from launch.processes.environment import ClusterEnvironment
from launch.profiling.machine_profile import identity_here, kept_at
from launch.runs.history import read_history
from launch.training.prediction import keep_prediction, known_gpu, known_machine, predict
from parallel.planner.choice.candidates import PlanRequest, candidate
from parallel.planner.choice.footprint import rank_footprint
from parallel.planner.step_time.step import step_time

ALONE, NODES = ClusterEnvironment(), ClusterEnvironment(world_size=8, local_world_size=4)
H100 = "NVIDIA H100 80GB HBM3"


def config_of(*words):
    return read_run_config("gpt3_125m", ["--parallel.data", "1", *words])


def test_the_prediction_is_that_of_a_plan():
    config = config_of()
    machine = known_gpu(H100, config, ALONE)
    assert machine is not None
    assert (machine.cluster.gpu.name, machine.cluster.node, machine.stack.name) == ("H100", 8, "triaxial")
    machine = replace(machine, base_bytes=1000)
    found = predict(config, layout_of(config, 1), machine, peak=989e12)
    request = PlanRequest(
        config.model, config.batch, config.data.seq_len, config.parallel, machine.cluster, machine.stack
    )
    job = candidate(request, config.parallel, config.batch.micro_batch_size).job
    time = step_time(job, machine.cluster, machine.stack)
    assert found is not None
    assert (found.step_s, found.low_s, found.high_s, found.tokens) == (time.seconds, time.low, time.high, job.tokens)
    assert found.mfu == pytest.approx(time.mfu(job, machine.cluster))
    assert found.peak_bytes == 1000 + round(rank_footprint(job, 0).peak)
    assert predict(config, layout_of(config, 1), machine, peak=0.0).mfu is None


def test_the_nodes_of_a_run_on_several():
    machine = known_gpu(H100, config_of(), NODES)
    assert machine is not None
    assert machine.cluster.node == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NVIDIA GeForce RTX 4090", ()),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", ()),
        (H100, ("--parallel.precision", "fp32")),
    ],
)
def test_unknown_hardware_says_nothing(name, words):
    assert known_gpu(name, config_of(*words), ALONE) is None


def test_a_step_that_the_planner_does_not_model(tmp_path):
    config = config_of(
        "--run.directory", str(tmp_path), "--parallel.engine", "deepspeed", "--parallel.compile", "false"
    )
    machine = known_gpu(H100, config, ALONE)
    assert machine is not None
    assert predict(config, layout_of(config, 1), machine, peak=0.0) is None
    assert known_machine(config, ClusterEnvironment(rank=1, world_size=2), torch.device("cpu")) is None


def test_the_file_of_a_run(tmp_path):
    config = config_of("--run.directory", str(tmp_path))
    machine = known_gpu(H100, config, ALONE)
    (line,) = keep_prediction(config, layout_of(config, 1), machine, peak=989e12)
    assert line.startswith("predicted: ")
    assert line.endswith("stack triaxial on H100")
    (tmp_path / "metrics.jsonl").write_text("")
    kept = read_history(tmp_path).prediction
    assert kept == predict(config, layout_of(config, 1), machine, peak=989e12)
    assert json.loads((tmp_path / "prediction.json").read_text())["stack"] == "triaxial"
    assert keep_prediction(config, layout_of(config, 1), None, peak=989e12) == []
    assert not (tmp_path / "prediction.json").exists()


def test_a_cpu_without_a_profile_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = config_of("--parallel.precision", "fp32", "--parallel.compile", "false")
    assert known_machine(config, ALONE, torch.device("cpu")) is None
    profiles = tmp_path / "triaxial" / "profiles"
    profiles.mkdir(parents=True)
    kept_at(identity_here()).write_text("{}")  # damaged: no fault of the run
    assert known_machine(config, ALONE, torch.device("cpu")) is None
